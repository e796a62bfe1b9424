"""What a task is: how a question and its answer become an input, what is edited, what is lost, what counts as right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from torch import Tensor

from lifelong_edit.models import Encoded, Generation, LoadedModel, TokenBatch
from lifelong_edit.models.families import Kind, Positions


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
    """Whether an answer is right, and whether it comes to an end by itself; `text` is what was said."""

    right: bool
    ended: bool
    text: str


class Task(Protocol):
    """One kind of question. Stateless; `model` is the loaded model as it stands."""

    kind: ClassVar[Kind]

    def encode(self, model: LoadedModel, question: str, answer: str, subject: str | None = None) -> Encoded:
        """Tokens of a question and its answer. Raises BadInputError for what the model cannot take."""

    def encode_question(self, model: LoadedModel, question: str) -> Sequence[int]:
        """Tokens of a question alone. Raises BadInputError likewise."""

    def collate(self, model: LoadedModel, examples: Sequence[Encoded]) -> TokenBatch:
        """Examples as one input of the model."""

    def slots(self, inputs: TokenBatch, positions: Positions) -> Tensor:
        """(b, t) bool, true at the editing positions of a module of that kind, in its own sequence."""

    def logits(self, model: LoadedModel, inputs: TokenBatch) -> Tensor:
        """Logits where answers are given, example by example: (n, choices) float32, differentiable."""

    def loss(self, logits: Tensor, inputs: TokenBatch, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """(n,) losses, divided so that their sum is the sum over examples, and (n,) the example of each."""

    def counts(self, examples: Sequence[Encoded]) -> list[int]:
        """How many rows of `logits` each example has."""

    def answer(
        self, model: LoadedModel, questions: Sequence[str], lengths: Sequence[int] | int, batch_size: int = 64
    ) -> list[Generation]:
        """What the model says to questions, in their order; lengths: tokens at most."""

    def judge(self, model: LoadedModel, question: str, wanted: str, answer: Generation) -> Verdict:
        """Whether an answer is the one that is wanted."""

    def health(self, model: LoadedModel, sample: Tensor) -> float:
        """How well the model still does what it was made for, on a sample of its ordinary input; less is better."""
