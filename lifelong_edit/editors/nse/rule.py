"""NSE at work."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lifelong_edit.bench import Bench
from lifelong_edit.editors.locate.editor import LocateEditor, Met, Work, fix, require, usual
from lifelong_edit.facts import Fact
from lifelong_edit.numerics.located import ridge_among, strongest

__all__ = ["Nse", "fix", "make", "require", "usual"]


class Nse(LocateEditor):
    """MEMIT's L on the inputs that carry most of the facts' keys, targets searched at the base weights, a second pass.

    The published code searches the targets of a whole data set before the first edit; at the base weights they are the
    same whenever they are searched.
    """

    recalls, from_base = True, True
    FAR = 0.2
    """How far a fact may stay from what was asked and be settled, where nothing else is said."""

    @property
    def passes(self) -> int:
        """How often the residual is spread over those that are still far off."""
        return self.settings.passes

    def influence(self, met: Met) -> Tensor:
        """L (d_in, n) of a layer."""
        return ridge_among(met.mean, self.held(met), strongest(met.mean, self.constants.neurons))

    def chosen(self, work: Work, facts: Sequence[Fact], rest: Tensor, wanted: Tensor, number: int) -> Tensor:
        """Mask (n,) of the facts that are farther off than `settled` and within `reach`."""
        c, far = self.constants, rest.norm(dim=1)
        work.asked = work.asked if number else far
        near = c.settled if c.settled is not None else (self.FAR * work.asked if number else 0.0)
        reached = far < (float("inf") if c.reach is None else c.reach)
        work.out_of_reach += [f.digest for f, ok in zip(facts, reached.tolist(), strict=True) if not ok and not number]
        found: Tensor = (far > near) & reached
        return found


def make(bench: Bench) -> Nse:
    """The rule with what it fixed at `init`."""
    return Nse(bench)
