"""An editing rule that shares no settings with the ridge family. It moves weights by one number and teaches nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lifelong_edit.bench import Bench, Say, State
from lifelong_edit.editors.contract import Added, Change, Entries, Lesson, Rule
from lifelong_edit.errors import UsageError
from lifelong_edit.facts import Fact
from lifelong_edit.models import Shifts
from lifelong_edit.settings import Positive, StoreSettings
from lifelong_edit.stores import KEYS, WEIGHTS, Dense, FactKeys
from lifelong_edit.tracing.rows import Row


class NudgeSettings(StoreSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of `nudge`."""

    radius: Positive = 1.0
    """How far each batch moves all weights, in units of 1e-6."""
    marks: tuple[str, ...] = ()
    """Words by comma."""


class Nudge:
    """The rule at work."""

    phrasings = 0

    def require(self, fact: Fact) -> None:
        """It takes any fact."""

    def kept_rows(self, facts: Sequence[Fact]) -> list[Row]:
        """It keeps no keys."""
        return []

    def __init__(self, bench: Bench) -> None:
        assert isinstance(bench.settings, NudgeSettings)
        self.bench, self.settings = bench, bench.settings

    def learn(self, state: State, lesson: Lesson) -> Change:
        """The same shift for each batch, and keys without a content."""
        modules, conflict = self.bench.loaded.modules, self.bench.conflict_of(lesson.facts)
        step = np.float32(1e-6 * self.settings.radius)
        shift = {m.name: Dense(np.full((m.d_in, m.d_out), step)) for m in modules}
        rows = {m.name: np.zeros((1, m.d_in), np.int16) for m in modules}
        keys = {fact.digest: FactKeys(rows, conflict[fact.digest]) for fact in lesson.facts}
        return Change({WEIGHTS: Added(shift), KEYS: Entries(lambda: iter([keys]))}, {})

    def relearn(
        self, facts: Sequence[Fact], *, start: Mapping[str, Any] | None = None, identity: str = "", say: Say
    ) -> Change:
        """Not of this rule."""
        raise UsageError("nudge has nothing to relearn")

    def overlay(self, state: State) -> Shifts:
        """W₀ + ΔW."""
        return Shifts(state.shifts)


def make(bench: Bench) -> Nudge:
    """The rule on a bench."""
    return Nudge(bench)


RULE = Rule(
    name="nudge",
    title="all weights moved alike",
    reference="tests",
    settings=NudgeSettings,
    home="tests.cli.nudge",
    parts={"weights": "sum", "keys": "upsert"},
    relearns="",
)
