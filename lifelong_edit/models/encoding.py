"""Prompt and target as tokens: exactly those that generation has to produce after the prompt."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lifelong_edit.errors import BadInputError
from lifelong_edit.facts import GLUE, mentions
from lifelong_edit.models.families import Positions

# Texts that stand before a continuation only to be cut off again: one of them merges with nothing after it.
_ANCHORS = ("\n", ".", "a", "1", '"')


@dataclass(frozen=True)
class Encoded:
    """Tokens of prompt and target; the target's begin at `answer_start`.

    What input is made of them is the task's (`Task.collate`): an answer may stand behind its question there, in place
    of a mask, in a sequence of its own, or nowhere.

    Editing positions, those whose next token is an answer token: range(answer_start - 1, len(ids) - 1).
    """

    ids: tuple[int, ...]
    answer_start: int
    subject: tuple[int, int] = (0, 0)
    """Where the subject's tokens begin and end in the prompt, the end not included; (0, 0) where it is not known."""
    ended: bool = False
    """Whether the last token stands for any that ends the answer's last word, whichever it is (`Task.ended`)."""

    @property
    def prompt(self) -> tuple[int, ...]:
        """The tokens before the answer, special ones in front included."""
        return self.ids[: self.answer_start]

    @property
    def answer(self) -> tuple[int, ...]:
        """The tokens of the answer."""
        return self.ids[self.answer_start :]

    @classmethod
    def of(cls, prompt: Sequence[int], answer: Sequence[int] = (), subject: tuple[int, int] = (0, 0)) -> Encoded:
        """A prompt and an answer that are tokens already."""
        return cls((*prompt, *answer), len(prompt), subject)


@dataclass
class TokenBatch:
    """Sequences padded on the right. ids, mask: (b, t) long. lengths, answer_starts: (b,) long. subjects: (b, 2).

    breaks: (vocabulary,) bool, the tokens that end a word, where some sequence is `Encoded.ended`. answer_ends: (b,)
    long, behind the answers, where more follows in their sequences.
    """

    ids: Tensor
    mask: Tensor
    lengths: Tensor
    answer_starts: Tensor
    subjects: Tensor
    breaks: Tensor | None = None
    answer_ends: Tensor | None = None

    def tokens(self, positions: Positions) -> Tensor:
        """(b, t) bool, true at all tokens of the sequence that a module with such positions reads."""
        return self.mask.bool()


# Scripts that put no space between words: Thai, Lao, Tibetan, Burmese, Khmer; Chinese and Japanese with their
# punctuation and what is set as wide as they are.
_UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\u30ff\u3100-\u312f\u31c0-\u9fff\uf900-\ufaff\ufe30-\ufe4f"
    "\uff00-\uff9f\U00020000-\U0003ffff]"
)
_QUOTES = "\"'“”„‟‘’‚‛«»‹›"


def separator(prompt: str, target: str) -> str:
    """What stands between prompt and target in running text: a space where the script needs one, else nothing.

    None is needed where one of them brings its own, after a bracket or quote that opens, and between two characters of
    scripts that write without spaces.
    """
    if not prompt or prompt[-1].isspace() or target[:1].isspace() or _opens(prompt):
        return ""
    return "" if _UNSPACED.match(prompt[-1]) and _UNSPACED.match(target[:1]) else " "


def _opens(prompt: str) -> bool:
    """Whether a text ends in a bracket that opens, or a quote before which no word stands."""
    last, before = prompt[-1], prompt[-2:-1]
    if last in _QUOTES:  # which of them opens is a matter of language
        return not before or before.isspace() or unicodedata.category(before) in ("Ps", "Pd")
    return unicodedata.category(last) == "Ps"


def encode_prompt(tokenizer: Any, prompt: str) -> list[int]:
    """Tokens of a prompt to be continued: with the special tokens that the tokenizer puts in front, none behind.

    Raises BadInputError for a prompt without any token and for one longer than the model's context.
    """
    front, plain = _prompt_tokens(tokenizer, prompt)
    return front + plain


def encode(tokenizer: Any, prompt: str, target: str, subject: str | None = None) -> Encoded:
    """Tokens of `prompt` and of `target` as its continuation; those of the prompt equal `encode_prompt`'s.

    The target's tokens are those that the tokenizer gives it within the whole text, wherever the prompt's
    own tokens are a prefix of the text's. Where they are not (a merge across the boundary, as after a
    prompt that ends in a space), they are tokens which decode to the same text after the prompt's.
    subject: what the prompt speaks of, to be found in it (`subject_span`). target: with `facts.GLUE` in front where it
    follows the prompt at once (`Fact.answer`).
    Raises BadInputError for an empty target and for a text longer than the model's context.
    """
    glued, bare = target.startswith(GLUE), target.removeprefix(GLUE)
    if not bare.strip():
        raise BadInputError(f"the target of prompt {prompt!r} is empty; expected the answer to be taught")
    front, plain = _prompt_tokens(tokenizer, prompt)
    answer = continuation(tokenizer, prompt, plain, bare if glued else separator(prompt, target) + target)
    if not answer:
        raise BadInputError(f"the target {target!r} has no tokens in this model's vocabulary")
    ids = (*front, *plain, *answer)
    check_length(tokenizer, ids, prompt)
    return Encoded(ids, len(front) + len(plain), subject_span(tokenizer, prompt, subject))


def encode_whole(tokenizer: Any, text: str, second: str | None = None) -> list[int]:
    """Tokens of a text that is read whole, with the special tokens around it; second: of the other text of a pair.

    Raises BadInputError for a text without a word, and for one longer than the model's context.
    """
    if not text.strip() or (second is not None and not second.strip()):
        raise BadInputError(f"the text {text!r} has no words to be read; expected some on both sides of a pair")
    ids: list[int] = tokenizer(text, second, verbose=False)["input_ids"]
    check_length(tokenizer, ids, text)
    return ids


def subject_span(tokenizer: Any, prompt: str, subject: str | None) -> tuple[int, int]:
    """Where the tokens of a subject begin and end within `encode_prompt`'s, at the last of its `mentions`.

    (0, 0) where the prompt does not mention it, or where a slow tokenizer cannot tell which token stands where.
    """
    found = mentions(prompt, subject or "")
    if not found or not tokenizer.is_fast:
        return 0, 0
    first, last = span_within(tokenizer, prompt, *found[-1])
    front = len(_tokens(tokenizer, prompt)[0]) if last else 0
    return front + first, front + last


def whole_span(tokenizer: Any, subject: str | None, text: str, second: str | None = None) -> tuple[int, int]:
    """Where the tokens of a subject begin and end within `encode_whole`'s: at its last mention in the text.

    Else in `second`; (0, 0) where neither mentions it, or where a slow tokenizer cannot tell which token stands where.
    """
    if not subject or not tokenizer.is_fast:
        return 0, 0
    found = tokenizer(text, second, return_offsets_mapping=True, verbose=False)
    for number, part in enumerate((text, second or "")):
        for start, end in mentions(part, subject)[-1:]:
            spans = zip(found.sequence_ids(), found["offset_mapping"], strict=True)
            inside = [i for i, (of, (a, b)) in enumerate(spans) if of == number and a < end and b > start]
            if inside:
                return inside[0], inside[-1] + 1
    return 0, 0


def span_within(tokenizer: Any, text: str, start: int, end: int) -> tuple[int, int]:
    """Where the tokens of the characters from `start` to `end` begin and end within those of the text itself.

    (0, 0) where no token stands there. The tokenizer has to be a fast one.
    """
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    inside = [i for i, (first, last) in enumerate(spans) if first < end and last > start]
    return (inside[0], inside[-1] + 1) if inside else (0, 0)


def _prompt_tokens(tokenizer: Any, prompt: str) -> tuple[list[int], list[int]]:
    """The tokens in front of a prompt and its own, checked."""
    front, plain = _tokens(tokenizer, prompt)
    if not front + plain:
        raise BadInputError(f"the prompt {prompt!r} has no tokens; a model needs at least one to continue")
    check_length(tokenizer, front + plain, prompt)
    return front, plain


def check_length(tokenizer: Any, ids: Sequence[int], prompt: str) -> None:
    """Raise BadInputError for more tokens than the model's context has room for, and for one that it does not know."""
    # `load_model` sets model_max_length to the model's context, and embedding_rows beside it.
    rows: int | None = getattr(tokenizer, "embedding_rows", None)
    if rows is not None and max(ids) >= rows:
        raise BadInputError(
            f"the text that begins {prompt[:40]!r} has the token {tokenizer.convert_ids_to_tokens(max(ids))!r} with "
            f"number {max(ids)}, but the model's embedding has rows 0 to {rows - 1}; leave it out"
        )
    if len(ids) > tokenizer.model_max_length:
        raise BadInputError(
            f"the text that begins {prompt[:40]!r} has {len(ids)} tokens, but the model takes "
            f"at most {tokenizer.model_max_length}"
        )


def _tokens(tokenizer: Any, text: str) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts in front of a text, and those of the text itself."""
    plain: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    full: list[int] = tokenizer(text, verbose=False)["input_ids"]
    if plain:
        fits = (k for k in range(len(full) - len(plain) + 1) if full[k : k + len(plain)] == plain)
        front = full[: next(fits, 0)]
        # A text that says itself how it begins, as chat templates do, does not begin twice.
        return ([] if plain[: len(front)] == front else front), plain
    # Without text of its own, the split between front and back shows only around a text that has some.
    return (special_front(tokenizer) if text != "a" else []), plain


def special_front(tokenizer: Any) -> list[int]:
    """The special tokens that the tokenizer puts in front of any text (BOS, as a rule, or none)."""
    return _tokens(tokenizer, "a")[0]


def continuation(tokenizer: Any, prompt: str, plain: list[int], suffix: str) -> list[int]:
    """The tokens of what follows a prompt, whose own are `plain`; see `encode`."""
    joint = _tokens(tokenizer, prompt + suffix)[1]
    return joint[len(plain) :] if joint[: len(plain)] == plain else _continuation(tokenizer, plain, suffix, joint)


def _continuation(tokenizer: Any, plain: list[int], suffix: str, joint: list[int]) -> list[int]:
    """Tokens which, after those of the prompt, decode to what `joint` decodes to."""
    wanted = tokenizer.decode(joint, clean_up_tokenization_spaces=False)
    candidates = list(_candidates(tokenizer, suffix))
    for candidate in candidates:
        if tokenizer.decode(plain + candidate, clean_up_tokenization_spaces=False) == wanted:
            return candidate
    return candidates[0]


def _candidates(tokenizer: Any, suffix: str) -> Iterator[list[int]]:
    """The suffix on its own, and as it is tokenised after each of the anchors."""
    yield _tokens(tokenizer, suffix)[1]
    for anchor in _ANCHORS:
        alone = _tokens(tokenizer, anchor)[1]
        after = _tokens(tokenizer, anchor + suffix)[1]
        if after[: len(alone)] == alone:
            yield after[len(alone) :]


def pad(encoded: Sequence[Encoded], pad_id: int, device: torch.device | str) -> TokenBatch:
    """Sequences as one batch, padded on the right with `pad_id`, which the mask hides."""
    lengths = torch.tensor([len(e.ids) for e in encoded])
    width = int(lengths.max()) if len(encoded) else 0
    ids = torch.tensor([list(e.ids) + [pad_id] * (width - len(e.ids)) for e in encoded], dtype=torch.long)
    mask = (torch.arange(width) < lengths[:, None]).long()
    starts = torch.tensor([e.answer_start for e in encoded])
    subjects = torch.tensor([e.subject for e in encoded], dtype=torch.long).reshape(-1, 2)
    return TokenBatch(ids.to(device), mask.to(device), lengths.to(device), starts.to(device), subjects.to(device))


def by_length(lengths: Sequence[int], micro_batch: int) -> Iterator[list[int]]:
    """Indices in micro-batches of similar length: little padding, an order that only the lengths decide."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    for start in range(0, len(order), micro_batch):
        yield order[start : start + micro_batch]
