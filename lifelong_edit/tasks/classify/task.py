"""Classification: a text or a pair of texts in, a label out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from lifelong_edit.errors import BadInputError
from lifelong_edit.facts import GLUE, VERBALISED, claim_of
from lifelong_edit.models import (
    BASE,
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
from lifelong_edit.models.families import Kind, Positions
from lifelong_edit.tasks.contract import Verdict
from lifelong_edit.tasks.encoders import ReadWhole, exponential, most_probable, read_arguments, split_pair, text_in
from lifelong_edit.tasks.losses import subject_mask


class Classify(ReadWhole):
    """Encoders with a head: the answer is one of the model's labels, its loss the cross-entropy.

    An answer is one token, the number of the label. Edited is the first position of a text, where the head reads
    ([CLS]), as published (MALMEN, arXiv 2311.04661), or the subject. A head of one logit z has two labels with the
    logits 0 and z, so that its loss is the binary cross-entropy.
    """

    kind: ClassVar[Kind] = "classify"

    def room(self, question: Question, tokens: int) -> int:
        """One label."""
        return 1

    def encode(self, model: Outlined, question: Question, answer: str, subject: str | None = None) -> Encoded:
        """Tokens of the text with special ones around it, and the number of the label."""
        return self.encode_said(model, question, (label_in(model.labels, answer),), subject)

    def encode_question(self, model: Outlined, question: Question) -> Sequence[int]:
        """Tokens of the text, or of both texts of a pair."""
        return encode_whole(model.tokenizer, *_texts(model, question))

    def encode_said(
        self, model: Outlined, question: Question, answer: Sequence[int], subject: str | None = None
    ) -> Encoded:
        """The same with a label's number."""
        span = whole_span(model.tokenizer, subject, *_texts(model, question))
        return Encoded.of(self.encode_question(model, question), answer, span)

    def collate(self, model: LoadedModel, examples: Sequence[Encoded]) -> TokenBatch:
        """Texts padded on the right; labels are no part of them."""
        return pad([Encoded.of(e.prompt, (), e.subject) for e in examples], model.pad_id, model.device)

    def slots(self, inputs: TokenBatch, positions: Positions) -> Tensor:
        """(b, t) bool: the first position, or the subject's tokens."""
        if positions == "subject":
            return subject_mask(inputs)
        first = torch.zeros_like(inputs.mask, dtype=torch.bool)
        first[:, :1] = True
        return first

    def ends(self, inputs: TokenBatch, positions: Positions = "answer") -> Tensor:
        """(b,) long: the first position, which has read all of the text."""
        return torch.zeros_like(inputs.lengths)

    def logits(self, model: LoadedModel, inputs: TokenBatch) -> Tensor:
        """The logits of the labels, (n, labels) float32."""
        return _logits(model, inputs.ids, inputs.mask)

    def answer(
        self,
        model: LoadedModel,
        questions: Sequence[Question],
        lengths: Sequence[int] | int,
        batch_size: int = 64,
        tell: Tell | None = None,
    ) -> list[Generation]:
        """The most probable label of each."""
        return most_probable(self, model, [self.encode_said(model, q, (0,)) for q in questions], batch_size, tell)

    def held(self, model: LoadedModel, question: Question, said: Generation) -> Sequence[int]:
        """The label."""
        return said.ids

    def shown(self, model: LoadedModel, question: Question, answer: Generation) -> str:
        """Each label with its probability, the most probable first: `SUPPORTS 0.981, REFUTES 0.019`."""
        with torch.inference_mode():
            inputs = self.collate(model, [Encoded.of(self.encode_question(model, question))])
            chances = self.logits(model, inputs)[0].softmax(-1).tolist()
        ranked = sorted(zip(chances, model.labels, strict=True), key=lambda pair: -pair[0])
        return ", ".join(f"{label} {chance:.3f}" for chance, label in ranked)

    def text(self, model: LoadedModel, question: Question, answer: Generation) -> str:
        """The label's name."""
        return model.labels[answer.ids[0]] if answer.ids else ""

    def judge(self, model: LoadedModel, question: Question, wanted: str, answer: Generation) -> Verdict:
        """Whether it is the label that is wanted; a label always ends by itself."""
        text, right = self.text(model, question, answer), answer.ids == (label_in(model.labels, wanted),)
        return Verdict(right, right, text, right)

    def health(self, model: LoadedModel, sample: Tensor) -> float:
        """exp of the mean cross-entropy of the base model's labels on windows of text, as the model gives them.

        At the base it is exp of the labels' mean entropy there; it grows by the factor exp(KL(base ‖ model)).
        """
        total = 0.0
        for part in torch.split(sample.to(model.device), 64):
            with torch.no_grad():
                now = _logits(model, part, None).double().log_softmax(-1)
                with model.at(BASE):
                    base = _logits(model, part, None).double().softmax(-1)
            total -= float((base * now).sum())
        return exponential(total / len(sample))


def label_in(labels: Sequence[str], answer: str) -> int:
    """The number of the label that an answer names, in whatever case; FEVER's also by the answers True and False.

    Raises BadInputError where there is none of that name.
    """
    wanted = answer.removeprefix(GLUE).strip().casefold()
    known = {name.casefold(): number for number, name in enumerate(labels)}
    named = {said.casefold(): name.casefold() for name, said in VERBALISED.items()}
    number = known.get(wanted, known.get(named.get(wanted, "")))
    if number is None:
        raise BadInputError(
            f"found the answer {answer.strip()[:40]!r}, expected a label of the model: {', '.join(labels)}; correct it"
        )
    return number


def _texts(model: Outlined, question: Question) -> tuple[str, str | None]:
    """The text to be labelled, and the second one of a pair: of a verbalised claim the claim and its evidence."""
    text, evidence = claim_of(text_in(model.put(question)))
    return (text, evidence) if evidence is not None else split_pair(text, model.tokenizer)


def _logits(model: LoadedModel, ids: Tensor, mask: Tensor | None) -> Tensor:
    """The logits of the labels of texts (b, t): (b, labels) float32, 0 and z of a head of one logit."""
    found: Tensor = model.model(**read_arguments(model.model, ids, mask, model.tokenizer.sep_token_id)).logits.float()
    return torch.cat([torch.zeros_like(found), found], -1) if found.shape[-1] == 1 else found
