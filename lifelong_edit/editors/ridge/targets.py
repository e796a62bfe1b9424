"""What a row asks for: value differences, from keys and gradients. Each rule of the family has its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
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

    recalls: whether it is made ready on rehearsed facts too, or on the new ones alone. sample: on how many facts it is
    made ready for a solve over all of them; None: on each one.
    """

    recalls: bool
    sample: int | None

    def ready(self, seen: Iterable[Seen], moments: Moments) -> Asker:
        """The rule for one solve, from what the facts of the solve show at the base weights, part by part."""

    def ridge(self, module: str) -> float | None:
        """The rule's own λ, unscaled; None leaves it to the settings."""


def together(seen: Iterable[Seen]) -> Seen:
    """All parts as one. Their loss is the sum; unknown where that of a part is."""
    parts = list(seen)
    if len(parts) == 1:
        return parts[0]
    losses = [part.loss for part in parts]
    return Seen(
        {name: torch.cat([part.keys[name] for part in parts]) for name in parts[0].keys},
        {name: torch.cat([part.gradients[name] for part in parts]) for name in parts[0].gradients},
        None if any(loss is None for loss in losses) else sum(loss for loss in losses if loss is not None),
    )
