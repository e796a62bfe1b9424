"""A state on a model that answers others: one that somebody holds already, or a server for trying it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lifelong_edit.timeline import Timeline

BASE = "base"
"""What the untouched model is called."""


def step_named(timeline: Timeline, name: str) -> int:
    """The step whose state a name stands for now. Raises UsageError for a name of no step, tag or branch."""
    return timeline.history().state_of(0 if name == BASE else name)
