"""Filling: a text with one mask or several in a row in, the tokens that fill them out, all in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lifelong_edit.errors import BadInputError
from lifelong_edit.facts import GLUE
from lifelong_edit.models import (
    Encoded,
    Generation,
    LoadedModel,
    Outlined,
    Question,
    Tell,
    TokenBatch,
    encode_whole,
    pad,
    whole_span,
)
from lifelong_edit.models.encoding import check_length
from lifelong_edit.models.families import Kind, Positions
from lifelong_edit.tasks.contract import Verdict
from lifelong_edit.tasks.encoders import ReadWhole, exponential, most_probable, read_arguments, text_in
from lifelong_edit.tasks.losses import subject_mask
from lifelong_edit.tasks.masked.gaps import Gap, filling, gap_in

EVERY = 7
"""Of the tokens of ordinary text one in so many is masked to tell how well a model does (BERT masks 15 %)."""
SHOWN = 3
"""Tokens that are shown for one mask, the most probable ones."""


class Masked(ReadWhole):
    """Encoders that fill masks: an answer of n tokens stands in the place of n masks, which are filled in one pass.

    None of its tokens sees another, so its loss is the mean cross-entropy of each by itself. A question is encoded with
    one mask, which becomes as many as the answer has tokens in the input (`collate`). Edited are the masks' positions,
    or the subject.
    """

    kind: ClassVar[Kind] = "masked"

    def room(self, question: Question, tokens: int) -> int:
        """As many tokens as masks are written in the question, one where none is."""
        return min(tokens, gap_in(text_in(question)).marks)

    def encode(self, model: Outlined, question: Question, answer: str, subject: str | None = None) -> Encoded:
        """Tokens of the text with one mask, and those of the answer as they are made in its place."""
        bare = answer.removeprefix(GLUE).strip()
        if not bare:
            raise BadInputError(f"the target of prompt {question!r} is empty; expected the answer to be taught")
        found = filling(model.tokenizer, _gap(model, question), bare)
        if not found:
            raise BadInputError(f"the target {bare!r} has no tokens in this model's vocabulary")
        return self.encode_said(model, question, found, subject)

    def encode_question(self, model: Outlined, question: Question) -> Sequence[int]:
        """Tokens of the text with one mask."""
        return _encoded(model, _gap(model, question))

    def encode_said(
        self, model: Outlined, question: Question, answer: Sequence[int], subject: str | None = None
    ) -> Encoded:
        """The same with tokens that fill the masks."""
        gap = _gap(model, question)
        ids = _encoded(model, gap)
        check_length(model.tokenizer, [*ids, *answer[1:]], gap.text)
        return Encoded.of(ids, answer, whole_span(model.tokenizer, subject, _masked(model, gap)))

    def collate(self, model: LoadedModel, examples: Sequence[Encoded]) -> TokenBatch:
        """Texts padded on the right, with as many masks as the answer has tokens, at least one."""
        mask = int(model.tokenizer.mask_token_id)
        # Ordinary text has no mask: there the key is read at its last word.
        starts = [e.prompt.index(mask) if mask in e.prompt else max(0, len(e.prompt) - 2) for e in examples]
        found = []
        for e, at in zip(examples, starts, strict=True):
            more = max(1, len(e.answer)) - 1
            first, last = (place + more if place > at else place for place in e.subject)
            found.append(Encoded.of((*e.prompt[:at], *[mask] * more, *e.prompt[at:]), (), (first, last)))
        batch = pad(found, model.pad_id, model.device)
        batch.answer_starts = torch.tensor(starts, device=model.device)
        counts = torch.tensor([max(1, len(e.answer)) for e in examples], device=model.device)
        batch.answer_ends = batch.answer_starts + counts
        return batch

    def slots(self, inputs: TokenBatch, positions: Positions) -> Tensor:
        """(b, t) bool: the masks, or the subject's tokens."""
        if positions == "subject":
            return subject_mask(inputs)
        assert inputs.answer_ends is not None  # made by `collate`
        position = torch.arange(inputs.ids.shape[1], device=inputs.ids.device)
        return (position >= inputs.answer_starts[:, None]) & (position < inputs.answer_ends[:, None])

    def ends(self, inputs: TokenBatch, positions: Positions = "answer") -> Tensor:
        """(b,) long: the first mask."""
        return inputs.answer_starts

    def logits(self, model: LoadedModel, inputs: TokenBatch) -> Tensor:
        """Logits at the masks, (n, vocabulary) float32."""
        given = read_arguments(model.model, inputs.ids, inputs.mask, model.tokenizer.sep_token_id)
        found: Tensor = model.model(**given).logits[self.slots(inputs, "answer")].float()
        return found

    def answer(
        self,
        model: LoadedModel,
        questions: Sequence[Question],
        lengths: Sequence[int] | int,
        batch_size: int = 64,
        tell: Tell | None = None,
    ) -> list[Generation]:
        """The most probable token at each mask; lengths: how many masks there are, exactly."""
        bounds = [lengths] * len(questions) if isinstance(lengths, int) else list(lengths)
        empty = [model.tokenizer.mask_token_id]
        asked = [self.encode_said(model, q, empty * max(1, n)) for q, n in zip(questions, bounds, strict=True)]
        return most_probable(self, model, asked, batch_size, tell)

    def held(self, model: LoadedModel, question: Question, said: Generation) -> Sequence[int]:
        """All of it."""
        return said.ids or (model.pad_id,)

    def shown(self, model: LoadedModel, question: Question, answer: Generation) -> str:
        """What fills the masks with its probability, the product of its tokens'; of one mask also the next best."""
        example = self.encode_said(model, question, answer.ids)
        with torch.inference_mode():
            chances = self.logits(model, self.collate(model, [example])).softmax(-1)
        own = float(chances[range(len(answer.ids)), list(answer.ids)].prod())
        told = [(own, self.text(model, question, answer))]
        if len(answer.ids) == 1:
            top = chances[0].topk(SHOWN)
            others = zip(top.values.tolist(), top.indices.tolist(), strict=True)
            told += [(p, self.text(model, question, Generation((i,)))) for p, i in others if i != answer.ids[0]]
        return ", ".join(f"{text} {chance:.3f}" for chance, text in told)

    def text(self, model: LoadedModel, question: Question, answer: Generation) -> str:
        """The tokens as text."""
        return str(model.tokenizer.decode(list(answer.ids))).strip()

    def judge(self, model: LoadedModel, question: Question, wanted: str, answer: Generation) -> Verdict:
        """Whether the tokens are those of the answer that is wanted."""
        right = answer.ids == self.encode(model, question, wanted).answer
        return Verdict(right, right, self.text(model, question, answer), right)

    def health(self, model: LoadedModel, sample: Tensor) -> float:
        """Perplexity of one token in `EVERY` of windows of text, all of a window's masked at once; less is better."""
        total, count = 0.0, 0
        for part in torch.split(sample.to(model.device), 32):
            hidden = torch.zeros_like(part, dtype=torch.bool)
            hidden[:, EVERY // 2 : part.shape[1] - 1 : EVERY] = True
            ids = part.masked_fill(hidden, int(model.tokenizer.mask_token_id))
            given = read_arguments(model.model, ids, None, model.tokenizer.sep_token_id)
            with torch.inference_mode():
                logits = model.model(**given).logits[hidden].float()
            total += float(nn.functional.cross_entropy(logits, part[hidden], reduction="sum"))
            count += int(hidden.sum())
        return exponential(total / max(1, count))


def _gap(model: Outlined, question: Question) -> Gap:
    """The place of the answer in a question as it is read."""
    gap = gap_in(text_in(model.put(question)), str(model.tokenizer.mask_token))
    if not gap.text.strip(" ."):
        raise BadInputError(f"the prompt {question!r} has no words around its gap; expected a text to be filled in")
    return gap


def _masked(model: Outlined, gap: Gap) -> str:
    """The text with the tokenizer's own mask in its gap."""
    return gap.before + str(model.tokenizer.mask_token) + gap.after


def _encoded(model: Any, gap: Gap) -> list[int]:
    return encode_whole(model.tokenizer, _masked(model, gap))
