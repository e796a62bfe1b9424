"""What a task is: how a question and its answer become an input, what is edited, what is lost, what counts as right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from torch import Tensor

from lifelong_edit.models import Encoded, Generation, LoadedModel, Outlined, Question, Tell, TokenBatch
from lifelong_edit.models.families import Kind, Positions

WIDTH = 128
"""Tokens of a window of ordinary text, fewer where the model takes fewer."""
WINDOWS = 30
"""Windows that tell how well a model does, unless it is said otherwise."""


@dataclass(frozen=True)
class BaseAnswer:
    """What the base model says after a preserved prompt.

    ids: (n,) answer tokens. top_ids, top_logp: (n, k) its most probable tokens at each answer
    position and their log-probabilities. rest_logp: (n,) log-probability of all others together,
    so that the gradient of the divergence at the base weights is zero up to rounding.
    """

    ids: tuple[int, ...]
    top_ids: np.ndarray
    top_logp: np.ndarray
    rest_logp: np.ndarray


class Example(Protocol):
    """A question with its answer as a task encodes it, and the base model's distribution there where that is held."""

    @property
    def encoded(self) -> Encoded:
        """Tokens of question and answer."""

    @property
    def base(self) -> BaseAnswer | None:
        """What has to stay; None where the answer is taught."""


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and whether it comes to an end by itself; `text` is what was said.

    contained: whether the wanted answer stands anywhere in it, as words of its own; right answers contain it.
    """

    right: bool
    ended: bool
    text: str
    contained: bool = False


class Cutter(Protocol):
    """Reads texts in two parts: what stands later in them changes nothing of what was read before."""

    def begin(self, texts: Sequence[Sequence[int]], micro_batch: int) -> list[Any]:
        """What the model as it stands keeps of texts' first tokens."""

    def ends_of(self, examples: Sequence[Encoded], begun: Sequence[Any]) -> list[Encoded]:
        """Examples without the tokens that were kept of each."""

    def logits(self, inputs: TokenBatch, begun: Sequence[Any]) -> Tensor:
        """As `Task.logits`, of such ends behind what was kept of each."""


class Task(Protocol):
    """One kind of question. Stateless; `model` is the loaded model as it stands, or what is known before it is loaded.

    A question is text, or a turn of a conversation (`models.Turn`), which needs a model with a chat template. It is
    encoded as the state at which the model stands has it read (`LoadedModel.put`).
    """

    kind: ClassVar[Kind]

    def margin(self, question: Question) -> int:
        """How many tokens beyond those of the wanted answer a judge has to see."""

    def room(self, question: Question, tokens: int) -> int:
        """How many tokens to ask for where no answer is wanted; at most `tokens`."""

    def encode(self, model: Outlined, question: Question, answer: str, subject: str | None = None) -> Encoded:
        """Tokens of a question and its answer. Raises BadInputError for what the model cannot take."""

    def encode_question(self, model: Outlined, question: Question) -> Sequence[int]:
        """Tokens of a question alone. Raises BadInputError likewise."""

    def encode_said(
        self, model: Outlined, question: Question, answer: Sequence[int], subject: str | None = None
    ) -> Encoded:
        """As `encode`, with an answer that is tokens already, such as what a model said."""

    def closed(self, model: LoadedModel, example: Encoded) -> Encoded:
        """The example with the token that ends a whole text behind its answer; as it is where there is none or no room.

        For rules that teach it beside the answer.
        """

    def bare(self, model: Outlined, example: Encoded) -> Encoded:
        """The example without the token that closes its answer, as published work teaches it; as it is without one."""

    def collate(self, model: LoadedModel, examples: Sequence[Encoded]) -> TokenBatch:
        """Examples as one input of the model."""

    def slots(self, inputs: TokenBatch, positions: Positions) -> Tensor:
        """(b, t) bool, true at the editing positions of a module of that kind, in its own sequence.

        As many as the answer has tokens, or the subject, or the question.
        """

    def ends(self, inputs: TokenBatch, positions: Positions = "answer") -> Tensor:
        """(b,) long, where a question's key is read in the sequence of a module with such positions.

        Whatever its answer is: what it asks is known there.
        """

    def read(self, model: LoadedModel, ids: Tensor, mask: Tensor | None = None) -> None:
        """A forward pass over texts (b, t), for those who record what goes on in it; mask: none where all are full."""

    def logits(self, model: LoadedModel, inputs: TokenBatch) -> Tensor:
        """Logits where answers are given, example by example: (n, choices) float32, differentiable."""

    def cutter(self, model: LoadedModel) -> Cutter | None:
        """How texts are read in two parts; None where a model cannot, since all of a text is read at once."""

    def loss(self, logits: Tensor, inputs: TokenBatch, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """(n,) losses, divided so that their sum is the sum over examples, and (n,) the example of each."""

    def ended(self, model: LoadedModel, example: Encoded) -> Encoded:
        """The example with one more token that has to end its answer; as it is where its answer cannot go on."""

    def counts(self, examples: Sequence[Encoded]) -> list[int]:
        """How many rows of `logits` each example has."""

    def answer(
        self,
        model: LoadedModel,
        questions: Sequence[Question],
        lengths: Sequence[int] | int,
        batch_size: int = 64,
        tell: Tell | None = None,
    ) -> list[Generation]:
        """What the model says to questions, in their order; lengths: tokens at most; tell: how many are answered."""

    def held(self, model: LoadedModel, question: Question, said: Generation) -> Sequence[int]:
        """Of what the model said to a preserved question the tokens that are held, at least one."""

    def shown(self, model: LoadedModel, question: Question, answer: Generation) -> str:
        """What the model as it stands said, as whoever asked is shown it."""

    def text(self, model: LoadedModel, question: Question, answer: Generation) -> str:
        """What the model said, as text."""

    def judge(self, model: LoadedModel, question: Question, wanted: str, answer: Generation) -> Verdict:
        """Whether an answer is the one that is wanted."""

    def windows(self, model: LoadedModel, text: str, count: int = WINDOWS) -> Tensor:
        """The beginning of a text as ordinary input: (n, t) token ids on the model's device, n ≤ count.

        t is WIDTH, or the model's context where that is less, or all of a text that is shorter. Raises BadInputError
        for one that is too short to tell anything.
        """

    def health(self, model: LoadedModel, sample: Tensor) -> float:
        """How well the model still does what it was made for, on such windows; less is better."""
