"""EMMET at work."""

from __future__ import annotations

from torch import Tensor

from lifelong_edit.bench import Bench
from lifelong_edit.editors.locate.editor import LocateEditor, Met, fix, require, usual
from lifelong_edit.numerics.located import equality

__all__ = ["Emmet", "fix", "make", "require", "usual"]


class Emmet(LocateEditor):
    """L = C⁻¹Kᵀ(KC⁻¹Kᵀ + μI)⁻¹ with C = c₀C₀; a single fact meets what it asks exactly (μ = 0), as published."""

    def influence(self, met: Met) -> Tensor:
        """L (d_in, n) of the matrix."""
        return equality(met.mean, self.held(met), self.settings.slack if len(met.mean) > 1 else 0.0)


def make(bench: Bench) -> Emmet:
    """The rule with what it fixed at `init`."""
    return Emmet(bench)
