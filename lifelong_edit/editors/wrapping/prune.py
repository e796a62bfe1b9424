"""PRUNE (Ma et al., arXiv 2405.16821): the sum of all shifts, its great singular values made smaller.

The published code does this once, after the last edit. Here the log has the sums as the rule inside made them, its
batches go on from these, and what is made smaller is how a state shows in the model: so every state is what PRUNE
after its last edit would be, and nothing is ever made smaller twice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lifelong_edit.bench import Bench, State
from lifelong_edit.editors.contract import Editor
from lifelong_edit.editors.wrapping.around import Around
from lifelong_edit.models import Shifts
from lifelong_edit.numerics.reshaping import compressed, greatest_singular


class Prune(Around):
    """The wrapper at work. bound: of singular values, as a multiple of the greatest one of the base matrix."""

    def __init__(self, bench: Bench, inner: Editor, log_base: float, bound: float) -> None:
        super().__init__(bench, inner)
        self.log_base, self.bound = log_base, bound
        self._bounds: dict[str, float] = {}
        self._seen: dict[str, tuple[Tensor, Tensor]] = {}

    def overlay(self, state: State) -> Shifts:
        """W₀ + the sum of shifts, made smaller."""
        shown = self.inner.overlay(state).shifts
        return Shifts({name: self._smaller(name, shift) for name, shift in shown.items()})

    def _smaller(self, module: str, shift: Tensor) -> Tensor:
        known = self._seen.get(module)
        if known is not None and torch.equal(known[0], shift):
            return known[1]  # a state is looked at many times, and a factorisation is the dear part of it
        if module not in self._bounds:
            self._bounds[module] = self.bound * greatest_singular(self.bench.loaded.base_weight(module))
        found = compressed(shift, self._bounds[module], self.log_base)
        self._seen[module] = shift.clone(), found
        return found


def make(bench: Bench, inner: Editor) -> Prune:
    """The wrapper around a rule."""
    s: Any = bench.settings  # of a class made for the pair
    return Prune(bench, inner, s.log_base, s.bound)
