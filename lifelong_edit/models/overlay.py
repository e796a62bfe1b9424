"""What an editing rule's state makes of a base model: shifted weights, attached hooks, other questions."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, final, runtime_checkable

from torch import Tensor

from lifelong_edit.models.forms import SameQuestion


class Overlay(Protocol):
    """How a state shows in a model, whole: overlays replace each other and never add up."""

    @property
    def shifts(self) -> Mapping[str, Tensor]:
        """ΔW by module, (d_in, d_out) float32; empty for rules that leave the weights alone."""

    def attach(self, model: Any) -> AbstractContextManager[None]:
        """Within the context the transformers model has the rule's hooks; afterwards none of them."""


@runtime_checkable
class Putting(Protocol):
    """An overlay that changes what is asked as well: what a state remembers is put before a question.

    It changes the question alone, at the moment in which it becomes tokens, and no other question than its own.
    """

    def put(self, question: SameQuestion) -> SameQuestion:
        """The question as the model is to read it; the same one where nothing is remembered of it."""


@final
@dataclass(frozen=True)
class Shifts:
    """The overlay of a rule that only shifts weights. Any other one may attach hooks."""

    shifts: Mapping[str, Tensor] = field(default_factory=dict)

    def attach(self, model: Any) -> AbstractContextManager[None]:
        """Nothing to attach."""
        return nullcontext()


BASE = Shifts()
"""The base model."""
