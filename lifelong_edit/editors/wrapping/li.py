"""1-LI around any rule that shifts weights: see `editors.li`."""

from __future__ import annotations

from typing import Any

from lifelong_edit.bench import Bench
from lifelong_edit.editors.contract import Editor
from lifelong_edit.editors.li.rule import Choice, InterpolatedEditor


def make(bench: Bench, inner: Editor) -> InterpolatedEditor:
    """A share of what a rule changes."""
    s: Any = bench.settings  # of a class made for the pair
    return InterpolatedEditor(bench, inner, Choice(s.alpha, s.grid, s.validation))
