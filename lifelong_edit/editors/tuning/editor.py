"""Fine-tuning rules at work: what they teach a batch differs, rows and training over all facts are the same."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from lifelong_edit.bench import Bench, Say, State, silent
from lifelong_edit.editors.contract import Added, Change, Keyless, Lesson, Whole, require_batch, require_live
from lifelong_edit.editors.ridge.rows import changed_subjects, rehearsed
from lifelong_edit.editors.tuning.settings import TuningSettings
from lifelong_edit.editors.tuning.training import Beside, Replay, Tuning, nothing
from lifelong_edit.facts import Fact
from lifelong_edit.models import LoadedModel, Shifts
from lifelong_edit.stores import WEIGHTS, Dense
from lifelong_edit.tasks import task_of
from lifelong_edit.tracing.derived import derived_rows
from lifelong_edit.tracing.rows import Row, RowKind, by_fact, draw, fact_rows, subjects_of
from lifelong_edit.tracked import in_order


class TunedEditor(Keyless):
    """Facts in, a weight shift out that Adam found. It keeps no keys.

    replay: live facts that are mixed into each step of a batch. preserved: preserved prompts beside them.
    preserved_weight: of their mean divergence against the mean loss of the facts.
    """

    def __init__(self, bench: Bench, replay: int = 0, preserved: int = 0, preserved_weight: float = 0.0) -> None:
        assert isinstance(bench.settings, TuningSettings)  # the registry pairs rules with their settings
        self.bench, self.settings = bench, bench.settings
        self.replay, self.preserved, self.preserved_weight = replay, preserved, preserved_weight

    @property
    def phrasings(self) -> int:
        """How many of a fact's rephrases are taught beside its prompt."""
        return self.settings.phrasings

    def overlay(self, state: State) -> Shifts:
        """W₀ + ΔW."""
        return Shifts(state.shifts)

    def learn(self, state: State, lesson: Lesson) -> Change:
        """Adam on the facts of a batch, from where the state is; see `Editor.learn`."""
        require_batch(lesson.facts)
        s, batch = self.settings, tuple(fact.digest for fact in lesson.facts)
        drawn = (s.seed, state.digest, batch)
        items = self.items(lesson.facts, "new", lesson.replaced)
        gone = set(lesson.retire)
        left = {digest: fact for digest, fact in state.live.items() if digest not in gone}
        subjects = changed_subjects(state, lesson)
        beside = self.beside(State(live=left, digest=state.digest), lesson.facts, subjects, drawn)
        tuning = Tuning(self.bench, s, state.shifts, self.preserved_weight)
        before = {name: shift.clone() for name, shift in tuning.shifts.items()}
        tuning.run(items, drawn, beside)
        shift = {name: Dense((found - before[name]).cpu().numpy()) for name, found in tuning.shifts.items()}
        return Change({WEIGHTS: Added(shift)}, tuning.report())

    def relearn(
        self,
        facts: Sequence[Fact],
        *,
        start: Mapping[str, Tensor] | None = None,
        identity: str = "",
        say: Say = silent,
    ) -> Change:
        """All facts together, breadth first, from the base; see `Editor.relearn` and `together`."""
        require_live(facts)
        return self.together(facts, start or {}, identity, say)

    def together(self, facts: Sequence[Fact], start: Mapping[str, Tensor], identity: str, say: Say = silent) -> Change:
        """Epochs over all facts, some at a time (LocFT-BF, arXiv 2509.22072): a function of the facts, not their order.

        start: ΔW to begin with, by module (d_in, d_out). identity: what draws depend on beside the facts.
        """
        s, facts = self.settings, sorted(facts, key=lambda fact: fact.digest)
        drawn = (s.seed, identity, tuple(fact.digest for fact in facts))
        tuning = Tuning(self.bench, s, start, self.preserved_weight)
        tuning.run(self.items(facts, "new"), drawn, self.beside(State(), facts, subjects_of(facts), drawn), say)
        return Change({WEIGHTS: Whole({n: shift.cpu().numpy() for n, shift in tuning.shifts.items()})}, tuning.report())

    def items(
        self, facts: Sequence[Fact], kind: RowKind, replaced: Mapping[str, Sequence[Fact]] | None = None
    ) -> list[list[Row]]:
        """The rows of each fact, its prompt first, with the end of the text where that is taught."""
        rows = fact_rows(self.bench.loaded, facts, self.settings.phrasings, kind, replaced)
        rows = [closed(self.bench.loaded, row) for row in rows] if self.settings.closing else rows
        return list(by_fact(facts, rows).values())

    def beside(
        self, state: State, facts: Sequence[Fact], subjects: Container[str], drawn: tuple[object, ...]
    ) -> Replay:
        """What stands beside the facts in a step, drawn afresh for each: live facts of the state, preserved prompts.

        Where the store has no preserved prompts they are derived from the facts. subjects: those of which none may be.
        """
        live = in_order(state.live)
        if not (self.replay and live) and not self.preserved:
            return nothing
        kept = self._preserved([*facts, *state.live.values()], subjects, drawn)
        return partial(self._drawn, state, live, kept, drawn)

    def _drawn(
        self, state: State, live: Sequence[str], kept: Sequence[Row], drawn: tuple[Any, ...], step: int
    ) -> Beside:
        again = rehearsed(state, live, self.replay, self.settings.seed, (*drawn[2], str(step)))
        chosen = draw(len(kept), self.preserved, "preserved", *drawn, step)
        return Beside(self.items(again, "rehearsal"), [kept[i] for i in chosen])

    def _preserved(self, facts: Sequence[Fact], subjects: Container[str], drawn: tuple[object, ...]) -> list[Row]:
        """The preserved rows that steps may draw from."""
        prompts = self.bench.preserved
        if prompts.probes:
            return [prompts.row(i, 1.0) for i in prompts.free(subjects)]
        options = {"tokens": self.settings.preserved_tokens, "micro_batch": self.settings.micro_batch}
        return derived_rows(self.bench.loaded, facts, self.preserved, *drawn, weight=1.0, **options)


def closed(loaded: LoadedModel, row: Row) -> Row:
    """The row with the end of the text behind its answer; a turn has its own."""
    return row if row.form == "chat" else replace(row, encoded=task_of(loaded).closed(loaded, row.encoded))


def usual(bench: Bench) -> Mapping[str, float]:
    """What settings that may be none come to on a bench, see `Rule.usual`.

    The rate as a share of the root mean square of a matrix's base weights, in the mean over the modules.
    """
    assert isinstance(bench.settings, TuningSettings)
    sizes = [float(bench.loaded.base_weight(name).square().mean().sqrt()) for name in bench.names]
    return {"relative_rate": bench.settings.rate * len(sizes) / sum(sizes)}
