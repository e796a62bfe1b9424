"""What an editing rule is: it only proposes; the solver turns proposals into deltas, the timeline commits them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from torch import Tensor

EditorState = Mapping[str, np.ndarray]


class Ask(Protocol):
    """Value differences of one module's rows."""

    def __call__(self, module: str, keys: Tensor, gradients: Tensor) -> Tensor:
        """keys (n, d_in), gradients (n, d_out) → (n, d_out)."""


@dataclass(frozen=True)
class Asker:
    """A rule made ready for one batch: what it asks, and the state that it carries on."""

    ask: Ask
    state: dict[str, np.ndarray] = field(default_factory=dict)


class Editor(Protocol):
    """An editing rule. `ready` sees the keys and gradients of the solve's own facts, at the base weights.

    recalls: whether those are rehearsed facts too, or the new ones alone.
    """

    recalls: bool

    def ready(
        self,
        keys: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        state: EditorState,
        loss: float | None = None,
    ) -> Asker:
        """The rule for one batch; loss: summed over the rows of these keys and gradients."""

    def ridge(self, module: str) -> float | None:
        """The rule's own λ, unscaled; None leaves it to the settings."""
