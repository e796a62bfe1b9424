"""Answering: an encoder reads a question whole, a decoder writes the answer and closes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

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
    masked_positions,
    whole_span,
)
from lifelong_edit.models.encoding import check_length
from lifelong_edit.models.families import Kind, Positions
from lifelong_edit.tasks.causal.perplexity import text_windows
from lifelong_edit.tasks.causal.verdicts import MARGIN, contains, judge
from lifelong_edit.tasks.contract import WINDOWS, Example, Verdict
from lifelong_edit.tasks.encoders import exponential, text_in
from lifelong_edit.tasks.losses import losses_of, subject_mask
from lifelong_edit.tasks.seq2seq.pairs import PairBatch, halves, pairs
from lifelong_edit.tasks.seq2seq.writing import write


class Seq2Seq:
    """T5 and its kin: the answer is all that the decoder writes, its loss the mean cross-entropy of its tokens.

    An answer has no blank in front, and ends with the token that closes a text, which is taught and scored; published
    work leaves that out (`bare`). Encoder modules are edited at all tokens of the question, or at the subject's;
    decoder modules where the next token is an answer token.
    """

    kind: ClassVar[Kind] = "seq2seq"

    def margin(self, question: Question) -> int:
        """A few tokens more, to see where the last word ends."""
        return MARGIN

    def room(self, question: Question, tokens: int) -> int:
        """All: the model ends its answer by itself, or is cut off."""
        return tokens

    def encode(self, model: Outlined, question: Question, answer: str, subject: str | None = None) -> Encoded:
        """Tokens of a question with the special ones around it; those of the answer and the token that closes it."""
        text = answer.removeprefix(GLUE).strip()
        if not text:
            raise BadInputError(
                f"the target of prompt {text_in(question)!r} is empty; expected the answer to be taught"
            )
        ids: list[int] = model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if not ids:
            raise BadInputError(f"the target {text!r} has no tokens in this model's vocabulary")
        end: int | None = model.tokenizer.eos_token_id
        said = ids if end is None else [*ids, end]
        check_length(model.tokenizer, said, text)
        return self.encode_said(model, question, said, subject)

    def encode_question(self, model: Outlined, question: Question) -> Sequence[int]:
        """Tokens of a question with the special ones around it."""
        return encode_whole(model.tokenizer, text_in(model.put(question)))

    def encode_said(
        self, model: Outlined, question: Question, answer: Sequence[int], subject: str | None = None
    ) -> Encoded:
        """Tokens of a question, and those that were said to it."""
        text = text_in(model.put(question))
        return Encoded.of(encode_whole(model.tokenizer, text), answer, whole_span(model.tokenizer, subject, text))

    def closed(self, model: LoadedModel, example: Encoded) -> Encoded:
        """An answer with the token that closes it, as `encode` gives it."""
        end: int | None = model.tokenizer.eos_token_id
        if end is None or example.answer[-1:] == (end,):
            return example
        return Encoded.of(example.prompt, (*example.answer, end), example.subject)

    def bare(self, model: Outlined, example: Encoded) -> Encoded:
        """An answer without the token that closes it, as MALMEN teaches T5."""
        end: int | None = model.tokenizer.eos_token_id
        if len(example.answer) < 2 or example.answer[-1] != end:
            return example
        return Encoded.of(example.prompt, example.answer[:-1], example.subject)

    def ended(self, model: LoadedModel, example: Encoded) -> Encoded:
        """As `closed`: an answer ends in one way."""
        return self.closed(model, example)

    def collate(self, model: LoadedModel, examples: Sequence[Encoded]) -> TokenBatch:
        """Questions padded on the right, answers beside them."""
        return pairs(model, examples)

    def slots(self, inputs: TokenBatch, positions: Positions) -> Tensor:
        """(b, u) bool, where the decoder makes answer tokens; or (b, t), the question's tokens or the subject's."""
        if positions == "question":
            return inputs.mask.bool()
        return _pairs(inputs).due if positions == "answer" else subject_mask(inputs)

    def ends(self, inputs: TokenBatch, positions: Positions = "answer") -> Tensor:
        """(b,) long: in the decoder its last opening token, where the answer begins; in the encoder the last token."""
        if positions == "answer":
            return torch.full_like(inputs.lengths, _pairs(inputs).opening - 1)
        return inputs.lengths - 1

    def read(self, model: LoadedModel, ids: Tensor, mask: Tensor | None = None) -> None:
        """A forward pass over texts: the encoder reads the first half of each, the decoder writes the second."""
        self.logits(model, halves(model, ids, mask))

    def logits(self, model: LoadedModel, inputs: TokenBatch) -> Tensor:
        """Logits where answer tokens are made alone, (n, vocabulary) float32."""
        batch = _pairs(inputs)
        with masked_positions(model.model, batch.due):
            out = model.model(
                input_ids=batch.ids, attention_mask=batch.mask, decoder_input_ids=batch.written, use_cache=False
            )
        logits: Tensor = out.logits[0].float()
        return logits

    def cutter(self, model: LoadedModel) -> None:
        """None: an encoder reads all of a text at once."""
        return

    def loss(self, logits: Tensor, inputs: TokenBatch, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy per taught example, summed divergence per held one; see `losses_of`."""
        return losses_of(logits, examples)

    def counts(self, examples: Sequence[Encoded]) -> list[int]:
        """As many as an answer has tokens, the closing one among them."""
        return [len(e.answer) for e in examples]

    def answer(
        self,
        model: LoadedModel,
        questions: Sequence[Question],
        lengths: Sequence[int] | int,
        batch_size: int = 64,
        tell: Tell | None = None,
    ) -> list[Generation]:
        """Greedy answers, each up to the token that closes it."""
        limits = [lengths] * len(questions) if isinstance(lengths, int) else lengths
        ids = [self.encode_question(model, question) for question in questions]
        return write(model, ids, limits, batch_size, tell)

    def held(self, model: LoadedModel, question: Question, said: Generation) -> Sequence[int]:
        """The whole answer, with its end where it has one: nothing follows it that would be text of its own."""
        return said.with_end

    def shown(self, model: LoadedModel, question: Question, answer: Generation) -> str:
        """The answer."""
        return self.text(model, question, answer)

    def text(self, model: LoadedModel, question: Question, answer: Generation) -> str:
        """The answer as text, without special tokens."""
        decode = model.tokenizer.decode
        return str(decode(list(answer.ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def judge(self, model: LoadedModel, question: Question, wanted: str, answer: Generation) -> Verdict:
        """Whether an answer begins with the wanted one, whole words of it; see `verdicts.judge` and `contains`."""
        text = self.text(model, question, answer)
        right, ended = judge("", wanted.removeprefix(GLUE), text, answer.stopped)
        return Verdict(right, ended, text, right or contains(wanted, text))

    def windows(self, model: LoadedModel, text: str, count: int = WINDOWS) -> Tensor:
        """Text cut into windows; see `perplexity.text_windows`."""
        return text_windows(model, text, count)

    def health(self, model: LoadedModel, sample: Tensor) -> float:
        """Perplexity of the second halves of windows (n, width), each written after the first half was read."""
        total, count = 0.0, 0
        with torch.inference_mode():
            for part in torch.split(sample.to(model.device), 8):
                batch = halves(model, part)
                loss = torch.nn.functional.cross_entropy(self.logits(model, batch), batch.made, reduction="sum")
                total, count = total + float(loss.double()), count + len(batch.made)
        return exponential(total / count)


def _pairs(inputs: TokenBatch) -> PairBatch:
    assert isinstance(inputs, PairBatch)  # `collate` and `halves` make no other
    return inputs
