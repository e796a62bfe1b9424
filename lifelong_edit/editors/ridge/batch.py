"""One batch of facts, from a state to a proposed change: this project's joint solve, or the published one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lifelong_edit.bench import Bench, State
from lifelong_edit.editors.contract import Added, Brought, Change, Entries, Lesson, Whole, require_batch
from lifelong_edit.editors.ridge.clock import Clock
from lifelong_edit.editors.ridge.held import Preservation
from lifelong_edit.editors.ridge.passes import LARGE, RowSystem, fact_keys, one_pass, total_shift
from lifelong_edit.editors.ridge.rows import changed_subjects, rows_to_be_ready_with, select_rows
from lifelong_edit.editors.ridge.settings import RidgeSettings
from lifelong_edit.editors.ridge.targets import Asker, Moments, Seen, Targets
from lifelong_edit.models import BASE
from lifelong_edit.numerics.solver import Held, Solution, Thin
from lifelong_edit.stores import KEYS, MOMENTS, WEIGHTS, FactKeys, Shift, materialise
from lifelong_edit.tracing.rows import Row, fact_rows, without_mention
from lifelong_edit.tracing.trace import trace
from lifelong_edit.tracked import Without, in_order

_FACTS = ("new", "rehearsal")


@dataclass
class Work:
    """A batch on its way: what every way of solving it needs.

    ridges: λ by module. parts: by module each pass's D and solution; of several processes each has its own modules'.
    """

    bench: Bench
    settings: RidgeSettings
    targets: Targets
    state: State
    lesson: Lesson
    ridges: Mapping[str, float]
    clock: Clock = field(default_factory=Clock)
    losses: list[float] = field(default_factory=list)
    parts: dict[str, list[tuple[Tensor, Solution | Thin]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_batch(self.lesson.facts)
        self.conflict = dict(self.lesson.conflict) or self.bench.conflict_of(self.lesson.facts)
        self.shifts = {
            m.name: self.state.shifts.get(m.name, torch.zeros(m.d_in, m.d_out)) for m in self.bench.loaded.modules
        }

    @property
    def moments(self) -> Moments:
        """What the rule remembers of the batches before."""
        return self.state.parts.get(MOMENTS, {})

    def took(self, rows: Sequence[Row], losses: Tensor, system: RowSystem) -> None:
        """Move on by a pass."""
        self.losses.append(float(losses[torch.tensor([r.kind == "new" for r in rows])].mean()))
        self.shifts = system.moved(self.shifts, self.bench.loaded.world)
        for name, solution in (system.solutions | system.thin).items():
            self.parts.setdefault(name, []).append((system.values[name], solution))

    def total(self) -> dict[str, Shift]:
        """The shift of all passes, by module."""
        return self.bench.loaded.world.named(self.bench.names, lambda name: total_shift(self.parts[name]))

    def change(
        self,
        rows: Sequence[Row],
        unsaid: list[str],
        shift: Mapping[str, Shift],
        keys: dict[str, FactKeys],
        asker: Asker,
    ) -> Change:
        """What all passes come to."""
        report: dict[str, object] = {
            "seconds": self.clock.seconds,
            "rows": {kind: sum(r.kind == kind for r in rows) for kind in (*_FACTS, "preserved")},
            "positions": {m.name: sum(r.positions_in(m) for r in rows) for m in self.bench.loaded.modules},
            "passes": len(self.losses),
            "loss": self.losses,
            "norm": {n: float(np.linalg.norm(materialise(d))) for n, d in shift.items()},
            "without_mention": unsaid,
        }
        parts: dict[str, Brought] = {WEIGHTS: Added(shift), KEYS: Entries(lambda: iter([keys]))}
        return Change(parts | ({MOMENTS: Whole(asker.moments)} if asker.moments else {}), report)


def learn_jointly(work: Work, preservation: Preservation) -> Change:
    """This project's solve: passes over new, rehearsed and preserved rows, with all else held still.

    A replaced fact leaves P and the rehearsal rows before its successor is solved.
    """
    bench, s, state, lesson = work.bench, work.settings, work.state, work.lesson
    live = in_order(Without(state.live, frozenset(lesson.retire)))
    rows = select_rows(
        bench, s, state, Lesson(lesson.facts, lesson.retire, work.conflict, lesson.replaced, lesson.hidden), live
    )
    unsaid = without_mention(bench.loaded.modules, lesson.facts, rows)
    work.clock.lap("rows")
    asker = ready(work, rows)
    work.clock.lap("metric")
    held = held_still(work, preservation, rows, s.passes)
    work.clock.lap("preservation")
    while True:
        with bench.loaded.at(work.shifts):
            traced = trace(bench.loaded, rows, s.micro_batch)
        work.clock.lap("trace")
        # what the first pass made of ΔW is the batch's own: a large matrix is moved on in place
        system = RowSystem(held, work.ridges, work.shifts, work.parts)
        one_pass(bench, asker, rows, system, s.preserved_step, traced)
        work.took(rows, traced.losses, system)
        work.clock.lap("solve")
        if len(work.losses) < s.passes:
            continue
        shift = work.total()
        keys, taken = keys_after(work, shift, rows)
        work.clock.lap("keys")
        if taken >= s.taken_enough or len(work.losses) == s.passes + s.more_passes:
            return work.change(rows, unsaid, shift, keys, asker)


def learn_as_published(work: Work) -> Change:
    """The original MALMEN: one pass over the new facts alone, P = 0, raw gradients (arXiv 2311.04661, equation 5).

    The rule knows no metric at the base weights: it is ready with what the pass itself traces.
    """
    bench, lesson = work.bench, work.lesson
    rows = fact_rows(bench.loaded, lesson.facts, work.settings.phrasings, closed=False)
    unsaid = without_mention(bench.loaded.modules, lesson.facts, rows)
    work.clock.lap("rows")
    with bench.loaded.at(work.shifts):
        traced = trace(bench.loaded, rows, bench.settings.micro_batch)
    work.clock.lap("trace")
    asker = work.targets.ready(Seen(traced.keys, traced.gradients), work.moments)
    system = RowSystem(dict.fromkeys(bench.names, (None, None)), work.ridges)
    one_pass(bench, asker, rows, system, 1.0, traced)
    work.took(rows, traced.losses, system)
    work.clock.lap("solve")
    shift = work.total()
    # Keys as the pass saw them, and no trace after it: where P = 0 holds nothing, no later published solve reads them.
    # What does read them, staleness and forecasts, measures their drift anyway.
    keys = fact_keys(bench, traced, rows, work.conflict)
    work.clock.lap("keys")
    return work.change(rows, unsaid, shift, keys, asker)


def ready(work: Work, rows: Sequence[Row]) -> Asker:
    """The rule made ready on the gradients of the solve's own facts at the base weights (ΔW = 0)."""
    own = rows_to_be_ready_with(rows, work.targets.recalls)
    with work.bench.loaded.at(BASE):
        traced = trace(work.bench.loaded, own, work.settings.micro_batch)
    return work.targets.ready(Seen(traced.keys, traced.gradients, float(traced.losses.sum())), work.moments)


def held_still(work: Work, preservation: Preservation, rows: Sequence[Row], passes: int) -> Held:
    """P of every module: text, preserved prompts, and the live facts that stay and are not among the rows."""
    among = {*work.lesson.retire, *(r.fact for r in rows if r.fact is not None)}
    others = Without(work.state.keys, among)
    return preservation.held(
        work.settings, work.ridges, others, rows, passes, changed_subjects(work.state, work.lesson)
    )


def keys_after(work: Work, shift: Mapping[str, Shift], rows: Sequence[Row]) -> tuple[dict[str, FactKeys], float]:
    """Keys of the new and rehearsed facts, traced once more at the weights that the step leaves.

    Beside them the share of new facts whose prompt is answered, every token of it more probable than all else together;
    of prompts in each form, where there are several.
    """
    moved = {}
    for name, part in shift.items():
        if work.shifts[name].numel() >= LARGE:  # as the passes left it: another sum of the same, which is there
            moved[name] = work.shifts[name]
            continue
        before = work.state.shifts.get(name)
        change = torch.from_numpy(materialise(part))
        moved[name] = change if before is None else before + change.to(before.device)
    own = [r for r in rows if r.fact is not None]
    with work.bench.loaded.at(moved):
        traced = trace(work.bench.loaded, own, work.settings.micro_batch, gradients=False)
    first = {(row.fact, row.form): i for i, row in reversed(list(enumerate(own))) if row.kind == "new"}
    taken = sum(float(traced.worst[i]) < math.log(2) for i in first.values()) / len(first)
    known = {row.fact: work.state.keys[row.fact].conflict for row in own if row.fact in work.state.keys}
    return fact_keys(work.bench, traced, own, {**known, **work.conflict}), taken
