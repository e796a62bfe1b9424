"""MEMIT at work: what each fact asks of a layer, against what text holds there."""

from __future__ import annotations

from torch import Tensor

from lifelong_edit.bench import Bench
from lifelong_edit.editors.locate.editor import LocateEditor, Met, fix, require, usual
from lifelong_edit.numerics.located import ridge

__all__ = ["Memit", "fix", "make", "require", "usual"]


class Memit(LocateEditor):
    """L = (c₀C₀ + KᵀK)⁻¹Kᵀ; earlier facts are not kept in mind."""

    def influence(self, met: Met) -> Tensor:
        """L (d_in, n) of a layer."""
        return ridge(met.mean, self.held(met))


def make(bench: Bench) -> Memit:
    """The rule with what it fixed at `init`."""
    return Memit(bench)
