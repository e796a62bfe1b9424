"""What a row asks for: value differences, from keys and gradients. Each rule of the family has its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from torch import Tensor

Ask = Callable[[str, Tensor, Tensor], Tensor]
"""Value differences of a module's rows, (n, d_out): its name, keys (n, d_in) and gradients (n, d_out) in."""
Moments = Mapping[str, np.ndarray]
"""What a rule remembers of all rows so far, by name; empty for most."""


@dataclass(frozen=True)
class Seen:
    """What a rule is made ready with. keys: module → (n, d_in); gradients: module → (n, d_out); loss: of their rows.

    loss is None for a published solve, which is ready with what its one pass traces.
    """

    keys: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]
    loss: float | None = None


@dataclass(frozen=True)
class Asker:
    """A rule made ready for one solve: what it asks, and the moments that it leaves behind."""

    ask: Ask
    moments: dict[str, np.ndarray] = field(default_factory=dict)


class Targets(Protocol):
    """How a rule of the family asks.

    recalls: whether it is made ready on rehearsed facts too, or on the new ones alone.
    """

    recalls: bool

    def ready(self, seen: Seen, moments: Moments) -> Asker:
        """The rule for one solve, from what the facts of the solve show at the base weights."""

    def ridge(self, module: str) -> float | None:
        """The rule's own λ, unscaled; None leaves it to the settings."""
