"""RECT (Gu et al., arXiv 2401.04700): a step changes those weights alone whose change is great for them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lifelong_edit.bench import Bench
from lifelong_edit.editors.contract import Editor
from lifelong_edit.editors.wrapping.around import Arrays, Occasion, Reshaped
from lifelong_edit.numerics.reshaping import most_changing


class Rect(Reshaped):
    """The wrapper at work. What is great is measured against the base weights, which do not move along a stream."""

    def __init__(self, bench: Bench, inner: Editor, keep: float) -> None:
        super().__init__(bench, inner)
        self.keep = keep

    def reshaped(self, before: Arrays, moved: Arrays, occasion: Occasion) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The share of the entries that is kept, and how much of each shift's norm they have."""
        weight = self.bench.loaded.base_weight
        kept = {name: most_changing(shift, weight(name).cpu(), self.keep) for name, shift in moved.items()}
        norms = {name: float(kept[name].norm() / shift.norm().clamp_min(1e-30)) for name, shift in moved.items()}
        return kept, {"kept": norms}


def make(bench: Bench, inner: Editor) -> Rect:
    """The wrapper around a rule."""
    s: Any = bench.settings  # of a class made for the pair
    return Rect(bench, inner, s.keep)
