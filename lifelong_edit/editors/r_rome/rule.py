"""R-ROME at work."""

from __future__ import annotations

from torch import Tensor

from lifelong_edit.bench import Bench
from lifelong_edit.editors.locate.editor import Met, fix, require, usual
from lifelong_edit.editors.rome.rule import Rome
from lifelong_edit.numerics.located import rank_one

__all__ = ["RevisedRome", "fix", "make", "require", "usual"]


class RevisedRome(Rome):
    """ROME with the mean over contexts as the only key."""

    def influence(self, met: Met) -> Tensor:
        """L (d_in, 1) of the fact."""
        return rank_one(met.mean, met.mean, self.turned(met))


def make(bench: Bench) -> RevisedRome:
    """The rule with what it fixed at `init`."""
    return RevisedRome(bench)
