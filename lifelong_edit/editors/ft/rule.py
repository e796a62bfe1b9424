"""FT-M: the loss of the target's tokens alone, Adam, a few steps; with a bound on each weight FT-L."""

from __future__ import annotations

from lifelong_edit.bench import Bench
from lifelong_edit.editors.tuning.editor import TunedEditor, usual

__all__ = ["make", "usual"]


def make(bench: Bench) -> TunedEditor:
    """The rule with nothing beside the facts of a batch."""
    return TunedEditor(bench)
