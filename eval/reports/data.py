"""What a report shows of a store: read from its log alone, without the model. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from lifelong_edit.errors import UsageError
from lifelong_edit.eval.reports.matrix import (
    HalfLife,
    Matrix,
    Rate,
    backward_transfer,
    by_age,
    collapse,
    forgetting,
    half_life,
    matrix_of,
    perplexity_after,
    rate,
    retention,
)
from lifelong_edit.eval.reports.survival import (
    Lost,
    Survival,
    histories,
    kaplan_meier,
    lost_facts,
    nearest_later,
    spells,
    split_by,
)
from lifelong_edit.facts import Fact
from lifelong_edit.policies.sampling import ordered
from lifelong_edit.settings import StoreSettings
from lifelong_edit.stores import Measure, Measurement, StepRecord
from lifelong_edit.timeline import Timeline
from lifelong_edit.timeline.names import StepName

MEASURES: tuple[Measure, ...] = ("efficacy", "generality", "locality", "chat", "portability", "multihop")
PARTED = 2048
"""Of how many facts the keys are compared with those of all later ones: of all it would grow with their square."""
ALARM = 1.1
"""From which multiple of the base model's perplexity on a page says that the model is wearing down."""
KEPT, WORN, ENOUGH = 0.95, 0.8, 10
"""From which share of facts still answered on a page says that a model keeps, or partly keeps, what it was taught, and
from how many facts on it says anything."""


@dataclass(frozen=True)
class Met:
    """A new fact that met one in force, and what became of it."""

    step: int
    kind: str
    action: str
    probability: float | None
    new: Fact
    old: Fact


@dataclass(frozen=True)
class StoreReport:
    """Everything that is shown of one store, along the line of its head."""

    name: str
    status: dict[str, Any]
    records: list[StepRecord]
    measurements: list[Measurement]
    matrices: dict[Measure, Matrix]
    """By measure, see MEASURES."""
    retention: list[Rate]
    """By measured state, of the batches before the newest one."""
    neighbours: list[Rate]
    guards: list[Rate]
    curve: list[Rate]
    """Share answered by age, at the states right after an edit."""
    perplexity: list[tuple[int, float]]
    """By step, relative to the base model's."""
    alarm: int | None
    survival: dict[str, Survival]
    nearness: float
    """The median that parts the strata of `survival`: PARTED facts of those asked, drawn, where there are more."""
    lost: list[tuple[Fact, Lost]]
    conflicts: list[Met]
    transfer: float
    forgotten: float
    half: HalfLife
    held: Rate
    """Of the facts that were answered when they were asked first and were asked again: those still answered."""

    @property
    def edits(self) -> list[StepRecord]:
        """The batches."""
        return [record for record in self.records if record.kind == "edit"]

    @property
    def reconsolidations(self) -> list[int]:
        """The steps that solved again for all live facts."""
        return [record.step for record in self.records if record.kind in ("reconsolidate", "retract")]

    @property
    def oldest(self) -> Rate:
        """Of the oldest batch that was asked last, at that state."""
        matrix = self.matrices["efficacy"]
        if not self.measurements:
            return rate(0, 0)
        asked = np.flatnonzero(matrix.asked[:, -1])
        return rate(int(matrix.right[asked[0], -1]), int(matrix.asked[asked[0], -1])) if len(asked) else rate(0, 0)

    def now(self, measure: Measure) -> Rate:
        """A measure over all batches, at the last measured state."""
        if not self.measurements:
            return rate(0, 0)
        return retention(self.matrices[measure], earlier=False)[-1]

    @property
    def level(self) -> str:
        """`kept`, `worn` or `lost` by `held`, `few` where that is of too few; `unknown` where nothing was asked."""
        if not self.measurements:
            return "unknown"
        if self.held.asked < ENOUGH:
            return "few"
        return "kept" if self.held.value >= KEPT else "worn" if self.held.value >= WORN else "lost"

    @property
    def unasked(self) -> int:
        """How many batches were edited after the last state that was asked."""
        last = self.measurements[-1].step if self.measurements else -1
        return sum(record.step > last for record in self.edits)

    def conflict_counts(self) -> list[tuple[str, str, int]]:
        """Kind, action, how many."""
        return [(kind, action, n) for (kind, action), n in Counter((c.kind, c.action) for c in self.conflicts).items()]


def gather(timeline: Timeline, name: str, at: StepName = "head") -> StoreReport:
    """All that a report shows of a store, as of a step. Raises StoreDamagedError where what it reads is damaged."""
    history = timeline.history()
    head = history.resolve(at)
    records, found = history.line(head), timeline.measurements(head)
    matrices = {measure: matrix_of(found, measure) for measure in MEASURES}
    edits = {record.step for record in records if record.kind == "edit"}
    curve = by_age(matrices["efficacy"], [m.step for m in found if m.step in edits])
    lives = spells(found)
    drawn = ordered({spell.fact for spell in lives}, timeline.settings.seed)[:PARTED]
    nearness, far, near = split_by(lives, _nearness(timeline, set(drawn)))
    strata = {"all facts": lives} | ({"keys far from later edits": far, "keys near later edits": near} if far else {})
    lost = lost_facts(found, history.live(head))
    facts = timeline.facts_by_digest([one.then.fact for one in lost])
    base = records[0].provenance.get("perplexity")
    return StoreReport(
        name=name,
        status={**timeline.status(), "live_facts": len(history.live(head))},
        records=records,
        measurements=found,
        matrices=matrices,
        retention=retention(matrices["efficacy"]),
        neighbours=retention(matrices["locality"], earlier=False),
        guards=[_guards(measurement) for measurement in found],
        curve=curve,
        perplexity=[(r.step, p / base) for r in records if base and (p := perplexity_after(r)) is not None],
        alarm=collapse(records, ALARM),
        survival={stratum: kaplan_meier(part) for stratum, part in strata.items() if part},
        nearness=nearness,
        lost=[(facts[one.then.fact], one) for one in lost],
        conflicts=_conflicts(timeline, records),
        transfer=backward_transfer(matrices["efficacy"]),
        forgotten=forgetting(matrices["efficacy"]),
        half=half_life(curve),
        held=_held(found),
    )


def _held(measurements: Sequence[Measurement]) -> Rate:
    again = [asked for asked in histories(measurements).values() if len(asked) > 1 and asked[0][1].generated]
    return rate(sum(asked[-1][1].generated for asked in again), len(again))


def _guards(measurement: Measurement) -> Rate:
    asked = [outcome.generated for outcome in measurement.outcomes if outcome.measure == "guard"]
    return rate(sum(asked), len(asked))


def _nearness(timeline: Timeline, asked: set[str]) -> dict[str, float]:
    """Of each fact that was asked, how near its key lies to those of later batches on the line."""
    if not asked:
        return {}
    taught: dict[str, int] = {}
    for record in timeline.history().line(timeline.head):
        taught.update((digest, record.step) for digest in record.added if digest not in taught)
    return nearest_later(timeline.key_directions(timeline.head), taught, asked) if taught else {}


def _conflicts(timeline: Timeline, records: Sequence[StepRecord]) -> list[Met]:
    met = [(record.step, one) for record in records for one in record.conflicts]
    facts = timeline.facts_by_digest(list(dict.fromkeys(d for _, one in met for d in (one.new, one.old))))
    return [Met(s, one.kind, one.action, one.probability, facts[one.new], facts[one.old]) for s, one in met]


def names_of(stores: Sequence[Path]) -> list[str]:
    """Short names that tell stores apart: the last parts of their paths, as many as that takes."""
    parts = [path.absolute().parts for path in stores]
    if len(set(parts)) < len(parts):
        raise UsageError("found a store twice; expected each once")
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in stores]


def changed_settings(settings: StoreSettings) -> dict[str, Any]:
    """What a store has otherwise than by default."""
    default = msgspec.to_builtins(type(settings)())
    return {name: value for name, value in msgspec.to_builtins(settings).items() if value != default[name]}
