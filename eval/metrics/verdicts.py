"""What an edited model answers: efficacy, generality and locality, teacher-forced and by generation.

Efficacy, generality (paraphrases) and locality (specificity) as in ROME and MEMIT (Meng et al.,
arXiv 2202.05262 and 2210.07229); teacher-forced, all answer tokens together, as in MEND and MALMEN
(arXiv 2110.11309 and 2311.04661). Teacher forcing overrates an edit, because it shows the model the
beginning of the answer (Yang et al., "The Mirage of Model Editing", arXiv 2502.11177): hence generation beside it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lifelong_edit.models import (
    Encoded,
    Generation,
    LoadedModel,
    encode,
    encode_prompt,
    generate,
    pad,
)
from lifelong_edit.tracing.trace import answer_logits, by_length

# Tokens generated beyond the target's own: enough to see whether its last word ends there.
MARGIN = 3
# Tokens of the base model's answer that have to stay, where a locality prompt comes without a target.
UNKNOWN_LENGTH = 5
SENTENCE_ENDS = ".!?…。！？"
# Scripts that are written without spaces: Thai to Khmer, kana, Han.
_UNSPACED = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF))

Pair = tuple[str, str]
"""A prompt and the answer that is wanted."""


@dataclass(frozen=True)
class Result:
    """How one question came out. natural: by generation, and the answer was followed by the end of a sentence."""

    teacher_forced: bool
    generated: bool
    natural: bool
    answer: str


@dataclass(frozen=True)
class Score:
    """Shares of questions that came out right, between 0 and 1; NaN where there was none."""

    count: int
    teacher_forced: float
    generated: float
    natural: float


def summarise(results: Sequence[Result]) -> Score:
    """The shares over a set of results."""
    count = len(results)
    totals = [sum(getattr(r, name) for r in results) for name in ("teacher_forced", "generated", "natural")]
    return Score(count, *(total / count if count else float("nan") for total in totals))


def ask_pairs(loaded: LoadedModel, pairs: Sequence[Pair], batch_size: int = 64) -> list[Result]:
    """Whether the model gives the wanted answers: efficacy on prompts, generality on paraphrases.

    Teacher-forced: every answer token is the most probable one after those before it.
    By generation: greedy, the target's tokens and MARGIN more; see `judge`.
    Raises BadInputError for an empty target or a prompt longer than the context.
    """
    encoded = [encode(loaded.tokenizer, prompt, target) for prompt, target in pairs]
    predicted = predict_answers(loaded, encoded, batch_size)
    lengths = [len(e.ids) - e.answer_start + MARGIN for e in encoded]
    generations = generate(loaded, [prompt for prompt, _ in pairs], lengths, batch_size)
    results = []
    for (prompt, target), e, guess, new in zip(pairs, encoded, predicted, generations, strict=True):
        text = continuation_text(loaded, prompt, new)
        generated, natural = judge(prompt, target, text, new.stopped)
        results.append(Result(guess == e.ids[e.answer_start :], generated, natural, text))
    return results


def base_answers(
    loaded: LoadedModel, probes: Sequence[tuple[str, str | None]], batch_size: int = 64
) -> list[tuple[int, ...]]:
    """What the untouched base model says to locality prompts, as token ids, whatever `loaded`'s shifts are.

    probes: prompts, each with the answer to be expected, which only fixes how many tokens are looked at;
    UNKNOWN_LENGTH where it is None. A token that ends the text is the last of the answer.
    """
    lengths = [
        UNKNOWN_LENGTH if target is None else _answer_length(encode(loaded.tokenizer, prompt, target))
        for prompt, target in probes
    ]
    with loaded.at_base():
        return [g.with_end for g in generate(loaded, [prompt for prompt, _ in probes], lengths, batch_size)]


def ask_unchanged(
    loaded: LoadedModel, prompts: Sequence[str], answers: Sequence[Sequence[int]], batch_size: int = 64
) -> list[Result]:
    """Locality: whether the model says, token by token, what the base model said.

    answers: from `base_answers`. Teacher-forced on them, and by generation of as many tokens. In exact
    arithmetic the two agree. natural: the answer is right and ends the text.
    """
    predicted = predict_answers(loaded, continued(loaded, prompts, answers), batch_size)
    new = generate(loaded, prompts, [len(answer) for answer in answers], batch_size)
    return [
        Result(
            guess == tuple(answer),
            g.with_end == tuple(answer),
            g.stopped and g.with_end == tuple(answer),
            continuation_text(loaded, prompt, g),
        )
        for prompt, answer, guess, g in zip(prompts, answers, predicted, new, strict=True)
    ]


def continued(loaded: LoadedModel, prompts: Sequence[str], answers: Sequence[Sequence[int]]) -> list[Encoded]:
    """Prompts, each with an answer of given tokens behind it."""
    fronts = [encode_prompt(loaded.tokenizer, prompt) for prompt in prompts]
    return [Encoded((*front, *answer), len(front)) for front, answer in zip(fronts, answers, strict=True)]


@torch.inference_mode()
def predict_answers(loaded: LoadedModel, encoded: Sequence[Encoded], batch_size: int = 64) -> list[tuple[int, ...]]:
    """The most probable token at each answer position, given the true ones before it: one tuple per sequence."""
    found: dict[int, tuple[int, ...]] = {}
    for chosen in by_length([len(e.ids) for e in encoded], batch_size):
        batch = pad([encoded[i] for i in chosen], loaded.pad_id, loaded.device)
        best = answer_logits(loaded, batch).argmax(-1).split([_answer_length(encoded[i]) for i in chosen])
        found.update((i, tuple(tokens.tolist())) for i, tokens in zip(chosen, best, strict=True))
    return [found[i] for i in range(len(encoded))]


def _answer_length(encoded: Encoded) -> int:
    return len(encoded.ids) - encoded.answer_start


def continuation_text(loaded: LoadedModel, prompt: str, generation: Generation) -> str:
    """What a generation adds to its prompt, as text, with the space in front that some decoders drop."""
    front = encode_prompt(loaded.tokenizer, prompt)
    decode = loaded.tokenizer.decode
    before: str = decode(front, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    whole: str = decode([*front, *generation.ids], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    if whole.startswith(before):
        return whole[len(before) :]
    alone: str = decode(list(generation.ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return alone


def judge(prompt: str, target: str, text: str, stopped: bool) -> tuple[bool, bool]:
    """Whether `text`, generated after `prompt`, answers with `target`, and whether it then comes to an end.

    It must start with the target, after white space or not, and both ends of the target must be word
    boundaries: "Paris," answers "Paris", "Parisian" and "3.5" do not answer "Paris" and "3". The end is
    natural where the end of the text or sentence-ending punctuation follows at once.
    """
    said, wanted = _normal(text).lstrip(), _normal(target).strip()
    if not wanted or not said.startswith(wanted) or _inside_word(_normal(prompt), _normal(text)):
        return False, False
    rest = said[len(wanted) :]
    if _inside_word(wanted, rest):
        return False, False
    return True, rest[:1] in SENTENCE_ENDS if rest else stopped


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _inside_word(left: str, right: str) -> bool:
    """Whether the boundary between two texts lies within a word or a number."""
    if not left or not right:
        return False
    if left[-1].isdigit() and right[0] in ".," and right[1:2].isdigit():
        return True
    return _in_word(left[-1]) and _in_word(right[0])


def _in_word(character: str) -> bool:
    """Whether a character is part of a word in a script that sets words apart by spaces."""
    code = ord(character)
    if any(first <= code <= last for first, last in _UNSPACED):
        return False
    return character == "_" or unicodedata.category(character)[0] in "LMN"
