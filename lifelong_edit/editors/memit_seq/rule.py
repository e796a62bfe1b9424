"""Sequential MEMIT at work."""

from __future__ import annotations

from lifelong_edit.bench import Bench
from lifelong_edit.editors.locate.editor import fix, require, usual
from lifelong_edit.editors.memit.rule import Memit

__all__ = ["SequentialMemit", "fix", "make", "require", "usual"]


class SequentialMemit(Memit):
    """L = (c₀C₀ + Q + KᵀK)⁻¹Kᵀ with the gram Q of the keys of all live facts, as each step left them."""

    recalls = True


def make(bench: Bench) -> SequentialMemit:
    """The rule with what it fixed at `init`."""
    return SequentialMemit(bench)
