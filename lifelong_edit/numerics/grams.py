"""Keys on an integer grid, and their grams as exact sums.

Sums of floating-point products depend on their order, so a gram from which a fact's keys were taken
away again would differ from one that never held them. Stored keys are therefore rounded to 16-bit
integers on a grid that is fixed at `init`, a power of two per coordinate. Products of two are below
2³⁰ and sums of up to 2²³ rows are exact in float64: adding and removing facts in any order gives the
same bytes as starting over, and no gram is ever stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from lifelong_edit.numerics.devices import to_solve
from lifelong_edit.stores.entries import FactKeys
from lifelong_edit.tracked import Follower

__all__ = ["GRID", "HEADROOM", "ExactGram", "FactKeys", "grid_scale", "rows_among", "scaled_rows", "to_grid"]

GRID = 32767
HEADROOM = 8.0
"""How far a key may exceed the greatest text key of its coordinate before it is cut off."""


def grid_scale(largest: Tensor) -> Tensor:
    """Width of the grid per coordinate, (d_in,) float64 powers of two; largest: (d_in,) greatest |k| of text."""
    bound = HEADROOM * to_solve(largest).clamp_min(1e-4)
    return torch.exp2(torch.ceil(torch.log2(bound / GRID)))


def to_grid(keys: Tensor, scale: Tensor) -> np.ndarray:
    """Keys (n, d_in) as int16 on the grid; scale: (d_in,) float64 on the device that solves for theirs."""
    units = (to_solve(keys) / scale).round().clamp(-GRID, GRID)
    return units.to(torch.int16).cpu().numpy()


def scaled_rows(module: str, facts: Iterable[FactKeys], scale: Tensor) -> Tensor:
    """The keys of facts in one module, (n, d_in) float64, in the order of the facts; scale: (d_in,)."""
    parts = [keys.rows[module] for keys in facts]
    if not parts:
        return torch.zeros(0, len(scale), dtype=torch.float64, device=scale.device)
    return torch.from_numpy(np.concatenate(parts)).to(scale).mul_(scale)


def rows_among(module: str, facts: Iterable[FactKeys], most: int) -> int:
    """How many rows facts have in one module; counted no further than beyond `most`."""
    found = 0
    for keys in facts:
        if found > most:
            break
        found += len(keys.rows[module])
    return found


class ExactGram:
    """Σ kᵀk over the keys of a changing set of facts, for one module, exact whatever the order of changes."""

    def __init__(self, module: str, scale: Tensor) -> None:
        self.module = module
        self.scale = scale
        self._held: dict[str, FactKeys] = {}
        self._follower = Follower()
        self._made: Tensor | None = None

    @property
    def _sum(self) -> Tensor:
        """In units of the grid; made when first asked for, since of a large d_in it is gigabytes."""
        if self._made is None:
            width = len(self.scale)
            self._made = torch.zeros(width, width, dtype=torch.float64, device=self.scale.device)
        return self._made

    def over(self, facts: Mapping[str, FactKeys]) -> Tensor:
        """The gram of exactly these facts, (d_in, d_in) float64."""
        changed = self._follower.changed(facts)
        names = {*self._held, *facts} if changed is None else changed
        pairs = [(digest, self._held.get(digest), facts.get(digest)) for digest in names]
        pairs = [(digest, before, after) for digest, before, after in pairs if before is not after]
        gone = [before for _, before, _ in pairs if before is not None]
        come = [after for _, _, after in pairs if after is not None]
        if len(gone) + len(come) > len(facts):
            gone, come = [], list(facts.values())
            self._sum.zero_()
        self._add(come, 1.0)
        self._add(gone, -1.0)
        for digest, _, after in pairs:
            if after is None:
                del self._held[digest]
            else:
                self._held[digest] = after
        # In place: for a large d_in every further copy is gigabytes.
        return (self._sum * self.scale[:, None]).mul_(self.scale[None, :])

    def _add(self, facts: Iterable[FactKeys], sign: float) -> None:
        parts = [keys.rows[self.module] for keys in facts]
        for start in range(0, len(parts), 256):
            units = torch.from_numpy(np.concatenate(parts[start : start + 256])).to(self._sum)
            self._sum.addmm_(units.T, units, alpha=sign)
