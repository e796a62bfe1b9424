"""Fine-tuning with replay: what a step could spoil is asked in the same step."""

from __future__ import annotations

from lifelong_edit.bench import Bench
from lifelong_edit.editors.ft_replay.settings import ReplaySettings
from lifelong_edit.editors.tuning.editor import TunedEditor, usual

__all__ = ["make", "usual"]


def make(bench: Bench) -> TunedEditor:
    """The rule with what its settings mix in."""
    s = bench.settings
    assert isinstance(s, ReplaySettings)  # the registry pairs rules with their settings
    return TunedEditor(bench, s.replay, s.preserved, s.preserved_weight)
