"""AlphaEdit at work."""

from __future__ import annotations

from torch import Tensor

from lifelong_edit.bench import Bench
from lifelong_edit.editors.locate.editor import LocateEditor, Met, fix, require, usual
from lifelong_edit.errors import UsageError
from lifelong_edit.numerics.located import Projection, free_directions, projected

__all__ = ["AlphaEdit", "fix", "make", "require", "usual"]


class AlphaEdit(LocateEditor):
    """L = [P(KᵀK + Q) + λI]⁻¹PKᵀ: edits move nothing along what keys of text have in them.

    P is derived from C₀, which `init` fixed, once for each matrix when it is first solved for.
    """

    recalls = True

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self._bases: dict[str, tuple[Projection, float]] = {}

    def basis(self, module: str) -> tuple[Projection, float]:
        """P, float64, and λ."""
        if module not in self._bases:
            grams, absolute = self.bench.text_gram, self.settings.units == "published"
            low = grams.low_rank(module)
            gram = grams[module] if low is None else low
            found = free_directions(gram, self.constants.threshold, self.settings.free)
            left = 1.0 if absolute else found.left
            if not found.rank or not left > 0:
                raise UsageError(
                    f"text leaves no direction of {module} free at free={self.settings.free}; expected some; set a "
                    "greater one"
                )
            self._bases[module] = found, self.constants.penalty * left
        return self._bases[module]

    def influence(self, met: Met) -> Tensor:
        """L (d_in, n) of a layer."""
        basis, penalty = self.basis(met.module)
        return projected(met.mean, basis, met.earlier, penalty)


def make(bench: Bench) -> AlphaEdit:
    """The rule with what it fixed at `init`."""
    return AlphaEdit(bench)
