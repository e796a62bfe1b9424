"""Continuation: a prompt in, the text that follows out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from lifelong_edit.models import (
    Encoded,
    Generation,
    LoadedModel,
    Outlined,
    Tell,
    TokenBatch,
    encode,
    encode_prompt,
    generate,
    pad,
    subject_span,
)
from lifelong_edit.models.families import Kind, Positions
from lifelong_edit.tasks.causal.perplexity import perplexity_of, text_windows
from lifelong_edit.tasks.causal.scoring import answer_logits, editing_mask, position_losses, subject_mask
from lifelong_edit.tasks.causal.verdicts import MARGIN, continuation_text, judge
from lifelong_edit.tasks.contract import WINDOWS, Example, Verdict


class Causal:
    """Decoders: the answer is what the model goes on with, its loss the mean cross-entropy of its tokens.

    Editing positions are those whose next token is an answer token, or the tokens of the subject.
    """

    kind: ClassVar[Kind] = "causal"
    margin: ClassVar[int] = MARGIN

    def encode(self, model: Outlined, question: str, answer: str, subject: str | None = None) -> Encoded:
        """Tokens of a prompt and of what is to follow it, see `models.encode`."""
        return encode(model.tokenizer, question, answer, subject)

    def encode_question(self, model: Outlined, question: str) -> Sequence[int]:
        """Tokens of a prompt to be continued."""
        return encode_prompt(model.tokenizer, question)

    def encode_said(self, model: Outlined, question: str, answer: Sequence[int], subject: str | None = None) -> Encoded:
        """Tokens of a prompt with those that followed it."""
        return Encoded.of(
            self.encode_question(model, question), answer, subject_span(model.tokenizer, question, subject)
        )

    def collate(self, model: LoadedModel, examples: Sequence[Encoded]) -> TokenBatch:
        """Sequences padded on the right."""
        return pad(examples, model.pad_id, model.device)

    def slots(self, inputs: TokenBatch, positions: Positions) -> Tensor:
        """(b, t) bool: where the next token is an answer token, or the subject's tokens."""
        return editing_mask(inputs) if positions == "answer" else subject_mask(inputs)

    def ends(self, inputs: TokenBatch) -> Tensor:
        """(b,) long: the prompts' last tokens."""
        return inputs.answer_starts - 1

    def read(self, model: LoadedModel, ids: Tensor, mask: Tensor | None = None) -> None:
        """A forward pass that keeps nothing for generation."""
        model.model(input_ids=ids, attention_mask=mask, use_cache=False)

    def logits(self, model: LoadedModel, inputs: TokenBatch) -> Tensor:
        """Logits at the answers' positions alone, (n, vocabulary) float32."""
        return answer_logits(model, inputs)

    def loss(self, logits: Tensor, inputs: TokenBatch, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy per taught example, summed divergence per held one; see `position_losses`."""
        return position_losses(logits, inputs, examples)

    def counts(self, examples: Sequence[Encoded]) -> list[int]:
        """As many as an answer has tokens."""
        return [len(e.answer) for e in examples]

    def answer(
        self,
        model: LoadedModel,
        questions: Sequence[str],
        lengths: Sequence[int] | int,
        batch_size: int = 64,
        tell: Tell | None = None,
    ) -> list[Generation]:
        """Greedy continuations."""
        return generate(model, questions, lengths, batch_size, tell=tell)

    def text(self, model: LoadedModel, question: str, answer: Generation) -> str:
        """What a continuation adds to its prompt; see `verdicts.continuation_text`."""
        return continuation_text(model, question, answer)

    def judge(self, model: LoadedModel, question: str, wanted: str, answer: Generation) -> Verdict:
        """Whether a continuation begins with the wanted answer, whole words of it; see `verdicts.judge`."""
        text = self.text(model, question, answer)
        return Verdict(*judge(question, wanted, text, answer.stopped), text)

    def windows(self, model: LoadedModel, text: str, count: int = WINDOWS) -> Tensor:
        """Text cut into windows; see `perplexity.text_windows`."""
        return text_windows(model, text, count)

    def health(self, model: LoadedModel, sample: Tensor) -> float:
        """Perplexity on windows of text, (n, width) token ids."""
        return perplexity_of(model, sample.to(model.device))
