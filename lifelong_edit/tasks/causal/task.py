"""Continuation: a prompt in, the text that follows out; or a turn of a conversation in, the answer out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from lifelong_edit.models import (
    Encoded,
    Generation,
    LoadedModel,
    Outlined,
    Question,
    Tell,
    TokenBatch,
    Turn,
    encode,
    encode_prompt,
    encode_reply,
    encode_turn,
    end_of_turn,
    generate_from_ids,
    last_position,
    pad,
    subject_span,
    turn_span,
)
from lifelong_edit.models.families import Kind, Positions
from lifelong_edit.tasks.causal.begun import can_be_cut
from lifelong_edit.tasks.causal.breaks import ended, word_breaks
from lifelong_edit.tasks.causal.cutting import CausalCutter
from lifelong_edit.tasks.causal.perplexity import perplexity_of, text_windows
from lifelong_edit.tasks.causal.scoring import answer_logits, editing_mask, position_losses
from lifelong_edit.tasks.causal.verdicts import CHAT_MARGIN, MARGIN, contains, continuation_text, judge
from lifelong_edit.tasks.contract import WINDOWS, Example, Verdict
from lifelong_edit.tasks.losses import subject_mask


class Causal:
    """Decoders: the answer is what the model goes on with, its loss the mean cross-entropy of its tokens.

    Editing positions are those whose next token is an answer token, or the tokens of the subject.
    """

    kind: ClassVar[Kind] = "causal"

    def margin(self, question: Question) -> int:
        """A few tokens more, to see where the last word ends; in a conversation those of a short sentence."""
        return CHAT_MARGIN if isinstance(question, Turn) else MARGIN

    def room(self, question: Question, tokens: int) -> int:
        """All: the model ends its answer by itself, or is cut off."""
        return tokens

    def encode(self, model: Outlined, question: Question, answer: str, subject: str | None = None) -> Encoded:
        """Tokens of a prompt and of what is to follow it, see `models.encode`; of a turn, see `models.encode_reply`."""
        question = model.put(question)
        if isinstance(question, Turn):
            return encode_reply(model.tokenizer, question, answer, subject)
        return encode(model.tokenizer, question, answer, subject)

    def encode_question(self, model: Outlined, question: Question) -> Sequence[int]:
        """Tokens of a prompt to be continued, or of a turn to be answered."""
        return _tokens(model, model.put(question))

    def encode_said(
        self, model: Outlined, question: Question, answer: Sequence[int], subject: str | None = None
    ) -> Encoded:
        """Tokens of a prompt with those that followed it."""
        question = model.put(question)
        if isinstance(question, Turn):
            span = turn_span(model.tokenizer, question, subject)
        else:
            span = subject_span(model.tokenizer, question, subject)
        return Encoded.of(_tokens(model, question), answer, span)

    def closed(self, model: LoadedModel, example: Encoded) -> Encoded:
        """A continuation with the end of the text behind it; a full context has no room for one."""
        end: int | None = model.tokenizer.eos_token_id
        if end is None or len(example.ids) >= model.context:
            return example
        return Encoded.of(example.prompt, (*example.answer, end), example.subject)

    def bare(self, model: Outlined, example: Encoded) -> Encoded:
        """As it is: a continuation has none unless it is asked for (`closed`)."""
        return example

    def collate(self, model: LoadedModel, examples: Sequence[Encoded]) -> TokenBatch:
        """Sequences padded on the right."""
        batch = pad(examples, model.pad_id, model.device)
        if any(example.ended for example in examples):
            batch.breaks = word_breaks(model)
        return batch

    def ended(self, model: LoadedModel, example: Encoded) -> Encoded:
        """A continuation with the end of its last word, see `breaks.ended`."""
        return ended(model, example)

    def slots(self, inputs: TokenBatch, positions: Positions) -> Tensor:
        """(b, t) bool: where the next token is an answer token, or the subject's tokens."""
        return editing_mask(inputs) if positions == "answer" else subject_mask(inputs)

    def ends(self, inputs: TokenBatch, positions: Positions = "answer") -> Tensor:
        """(b,) long: the prompts' last tokens."""
        return inputs.answer_starts - 1

    def read(self, model: LoadedModel, ids: Tensor, mask: Tensor | None = None) -> None:
        """A forward pass that keeps nothing for generation, and makes logits for the last position alone."""
        with last_position(model.model):
            model.model(input_ids=ids, attention_mask=mask, use_cache=False)

    def logits(self, model: LoadedModel, inputs: TokenBatch) -> Tensor:
        """Logits at the answers' positions alone, (n, vocabulary) float32."""
        return answer_logits(model, inputs)

    def cutter(self, model: LoadedModel) -> CausalCutter | None:
        """What keeps attention's keys and values of a beginning; whether that serves is measured."""
        return CausalCutter(model) if can_be_cut(model) else None

    def loss(self, logits: Tensor, inputs: TokenBatch, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy per taught example, summed divergence per held one; see `position_losses`."""
        return position_losses(logits, inputs, examples)

    def counts(self, examples: Sequence[Encoded]) -> list[int]:
        """As many as an answer has tokens."""
        return [len(e.answer) for e in examples]

    def answer(
        self,
        model: LoadedModel,
        questions: Sequence[Question],
        lengths: Sequence[int] | int,
        batch_size: int = 64,
        tell: Tell | None = None,
    ) -> list[Generation]:
        """Greedy continuations; the answer to a turn ends where the chat template ends a turn."""
        bounds = [lengths] * len(questions) if isinstance(lengths, int) else lengths
        asked = list(zip(questions, bounds, strict=True))
        found: dict[int, Generation] = {}
        for turns in (False, True):
            where = [i for i, (question, _) in enumerate(asked) if isinstance(question, Turn) is turns]
            ids = [self.encode_question(model, asked[i][0]) for i in where]
            ends = end_of_turn(model.tokenizer)[-1:] if turns and where else ()
            more = None if tell is None else _beside(tell, len(found))
            said = generate_from_ids(model, ids, [asked[i][1] for i in where], batch_size, tell=more, ends=ends)
            found.update(zip(where, said, strict=True))
        return [found[i] for i in range(len(questions))]

    def held(self, model: LoadedModel, question: Question, said: Generation) -> Sequence[int]:
        """The answer up to its first full stop, comma or line break, or its first token.

        What follows a short answer is text of its own, on which edits have every right to act. An answer to a turn that
        ends sooner is held with its end.
        """
        ids = list(said.ids) or [model.pad_id]
        ends = [n for n, token in enumerate(ids) if set(model.tokenizer.decode([token])) & set(".,;!?\n")]
        ended = isinstance(question, Turn) and not ends and said.ids
        return ids[: max(1, ends[0])] if ends else list(said.with_end) if ended else ids

    def shown(self, model: LoadedModel, question: Question, answer: Generation) -> str:
        """The tokens as text, special ones among them unless it was a turn."""
        return str(model.tokenizer.decode(list(answer.ids), skip_special_tokens=isinstance(question, Turn)))

    def text(self, model: LoadedModel, question: Question, answer: Generation) -> str:
        """What a continuation adds to its prompt, see `verdicts.continuation_text`; of a turn the whole answer."""
        if isinstance(question, Turn):
            decode = model.tokenizer.decode
            return str(decode(list(answer.ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
        return continuation_text(model, question, answer)

    def judge(self, model: LoadedModel, question: Question, wanted: str, answer: Generation) -> Verdict:
        """Whether an answer begins with the wanted one, whole words of it; see `verdicts.judge` and `contains`."""
        text = self.text(model, question, answer)
        before = "" if isinstance(question, Turn) else question
        right, ended = judge(before, wanted, text, answer.stopped)
        return Verdict(right, ended, text, right or contains(wanted, text))

    def windows(self, model: LoadedModel, text: str, count: int = WINDOWS) -> Tensor:
        """Text cut into windows; see `perplexity.text_windows`."""
        return text_windows(model, text, count)

    def health(self, model: LoadedModel, sample: Tensor) -> float:
        """Perplexity on windows of text, (n, width) token ids."""
        return perplexity_of(model, sample.to(model.device))


def _tokens(model: Outlined, question: Question) -> Sequence[int]:
    """Tokens of a question as it is read."""
    if isinstance(question, Turn):
        return encode_turn(model.tokenizer, question)
    return encode_prompt(model.tokenizer, question)


def _beside(tell: Tell, before: int) -> Tell:
    """Tells how many are done where so many were done before."""
    return lambda done: tell(before + done)
