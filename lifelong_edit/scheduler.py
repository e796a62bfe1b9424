"""From a stream of records to committed steps: batches are cut, checked, applied and reported one by one."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lifelong_edit.errors import BadInputError, StepRefusedError
from lifelong_edit.facts import Fact, Record
from lifelong_edit.policies import (
    TURNED_AWAY,
    BatchingPolicy,
    ConflictPolicy,
    FixedSize,
    Never,
    ReconsolidationPolicy,
    Standing,
    cut_with_pauses,
    require_policy,
)
from lifelong_edit.stores import Measurement, StepRecord
from lifelong_edit.timeline import Timeline
from lifelong_edit.timeline.locking import Lock, locked
from lifelong_edit.timeline.sieve import Handling, Sieved, Skip
from lifelong_edit.timeline.trial import Trial

BATCH_SIZE = 64
MEASURED = ("edit", "reconsolidate")
"""Kinds of steps after which the model is asked."""


@dataclass(frozen=True, kw_only=True)
class BatchEvent:
    """What became of one batch."""

    batch: int
    """0-based number in the stream."""
    records: int
    step: int | None
    """The step that was committed; None where nothing was left to do, and in a dry run."""
    facts: int
    """How many facts the step taught (in a dry run: would teach)."""
    skipped: Mapping[str, int]
    """How many records were left out, by reason."""
    turned_down: Sequence[Skip] = ()
    """Those of them that were retracted, purged or dismissed before, with the step that did so."""
    report: Mapping[str, Any]
    """The step's report: gate, conflicts, editor. Empty where nothing was left to do."""
    batch_facts: Mapping[str, Fact]
    """The batch's facts by digest."""
    record: StepRecord | None = None
    """The step; in a dry run the one that it would be; None where nothing was left to do."""
    refused: str | None = None
    """In a dry run: why the gate would refuse the batch."""
    weights_digest: str | None = None
    seconds: float = 0.0
    """Of the step alone, without what was measured after it."""
    measured: Measurement | None = None
    """What was asked of the model after the step, where it was."""

    @property
    def untaken(self) -> Sequence[str]:
        """Digests of the facts that the model does not answer after the step."""
        gate = None if self.record is None else self.record.gate
        return () if gate is None else gate.untaken or ()


@dataclass(frozen=True, kw_only=True)
class ReconsolidationEvent:
    """What became of a reconsolidation that the policy asked for."""

    step: int
    refused: bool
    """Whether the guard objected: the step is logged, and the state is that before."""
    report: Mapping[str, Any]
    """The step's report: guard, objections, editor."""
    weights_digest: str
    seconds: float
    measured: Measurement | None = None


@dataclass
class Summary:
    """What a run did."""

    batches: int = 0
    records: int = 0
    facts: int = 0
    untaken: int = 0
    steps: list[int] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    conflicts: Counter[str] = field(default_factory=Counter)
    """Pairs of facts that met, by kind."""
    turned_away: Counter[str] = field(default_factory=Counter)
    """Records that were not edited for another fact's sake, by action."""
    reconsolidations: int = 0
    refused: int = 0
    """Reconsolidations that the guard objected to; they are not among `reconsolidations`."""
    bad: list[str] = field(default_factory=list)
    """`file:line: reason` of records that this model cannot take, left out with `skip_bad`."""
    seconds: float = 0.0

    def add(self, event: BatchEvent | ReconsolidationEvent) -> None:
        """Count an event in."""
        if isinstance(event, ReconsolidationEvent):
            self.reconsolidations += not event.refused
            self.refused += event.refused
            self.seconds += event.seconds
            return
        self.batches += 1
        self.records += event.records
        self.facts += event.facts
        self.untaken += len(event.untaken)
        self.skipped.update(event.skipped)
        met = () if event.record is None else event.record.conflicts
        self.conflicts.update(one.kind for one in met)
        lost = {one.new: one.action for one in met if one.action in TURNED_AWAY}
        self.turned_away.update(lost.values())
        self.seconds += event.seconds
        if event.step is not None:
            self.steps.append(event.step)


class Scheduler:
    """Edits a stream into a timeline.

    Batches are cut from the records as they come, before anything is skipped, so that a run which was killed
    anywhere and is started again with the same input meets the same batches and leaves the same digests.

    reconsolidation: asked after each committed edit, and at the start of a run, since the last one may have been cut
    off before it could be asked; one that looks ahead, before each batch that leaves something to edit; by default
    never due. conflicts: a policy's name or a callable that decides, instead of the store's setting. reviewed: the
    records come back from review: those that are in quarantine are edited, the others are skipped. measure: asks the
    model at the state of a step; what it finds after each edit and each reconsolidation is kept in the store, also
    before the first edit of a run, where the last one was cut off before that. say: told about each pass of a
    reconsolidation.
    """

    def __init__(
        self,
        timeline: Timeline,
        *,
        batching: BatchingPolicy | None = None,
        reconsolidation: ReconsolidationPolicy | None = None,
        conflicts: ConflictPolicy | None = None,
        reviewed: bool = False,
        skip_bad: bool = False,
        measure: Callable[[Timeline, int], Measurement] | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._timeline = timeline
        self._batching = batching or FixedSize(BATCH_SIZE)
        self._reconsolidation = reconsolidation or Never()
        if conflicts is not None:
            require_policy(conflicts)
        self._handling = Handling(reviewed=reviewed, conflicts=conflicts)
        self._skip_bad, self._ask, self._say = skip_bad, measure, say
        self._up_to_date = measure is None
        """Whether the head's state was asked, or does not have to be."""
        self.summary = Summary()

    @property
    def lock(self) -> Lock:
        """That of the timeline."""
        return self._timeline.lock

    def run(
        self, records: Iterable[Record | None], *, again: bool = False, dry_run: bool = False, reason: str | None = None
    ) -> Iterator[BatchEvent | ReconsolidationEvent]:
        """Batch by batch: what became of it, and of each reconsolidation between them. `summary` counts along.

        records: None among them says that no more have come yet, see `cut_with_pauses`. again: also what is known only
        from steps that were rolled back, and what was retracted, purged or dismissed. dry_run: commit nothing; every
        batch is tried on what those before it would leave, one that is refused leaving all as it was, and nothing is
        reconsolidated. Raises `BadInputError` at a record that
        the reader or the model refuses, with nothing of its batch applied, and `StepRefusedError` where the gate
        refuses.
        """
        ahead, handling = self._reconsolidation.looks_ahead, replace(self._handling, again=again)
        trial = self._timeline.trial() if dry_run else None
        find = self._apply if trial is None else functools.partial(self._preview, trial)
        if not dry_run and not ahead:
            yield from self._reconsolidate(reason)
        for number, batch in enumerate(cut_with_pauses(self._batching, records)):
            started = time.perf_counter()
            sound, left = self._check(batch, handling, trial or self._timeline)
            if not dry_run and left.facts:
                self._measure_if_cut_off()
            if not dry_run and ahead and left.facts:
                yield from self._reconsolidate(reason, left)
                started = time.perf_counter()
            event = find(number, sound, left, reason, started)
            self.summary.add(event)
            yield event
            if event.step is not None and not ahead:
                yield from self._reconsolidate(reason)

    def _reconsolidate(self, reason: str | None, coming: Sieved | None = None) -> Iterator[ReconsolidationEvent]:
        """Reconsolidate if the policy says so; the step's reason is the policy where the run has none.

        coming: what is left of the batch that is to be edited next, where one is at hand.
        """
        timeline = self._timeline
        since, before = timeline.history().edits(timeline.head)
        forecast = None if coming is None else lambda: self._forecast(coming)
        reached = timeline.history().retention_left(timeline.head)
        if not self._reconsolidation.due(Standing(since, before, self._retention, forecast, reached)):
            return
        step = timeline.reconsolidate(reason=reason or str(self._reconsolidation), say=self._say)
        refused = step.kind == "refused"
        event = ReconsolidationEvent(
            step=step.step,
            refused=refused,
            report=step.report,
            weights_digest=step.weights_digest,
            seconds=step.seconds or 0.0,
            measured=None if refused else self._measure(step.step),
        )
        self.summary.add(event)
        yield event

    def _forecast(self, coming: Sieved) -> float:
        """Share of the live facts that will have been forgotten since the last attempt, with the coming batch."""
        found = self._timeline.forecast(coming)
        return 0.0 if found is None else float(found["since"])

    @locked
    def _retention(self) -> float:
        """Share of right answers at the head, as the guard of a reconsolidation measures it."""
        from lifelong_edit.judging.guard import retention

        head, editor = self._timeline.at(self._timeline.head), self._timeline.editor()
        with head.standing():
            return retention(self._timeline.bench(), editor.phrasings, head.facts(), head.record.live_digest)[0]

    @locked
    def _apply(
        self, number: int, batch: Sequence[Record], left: Sieved, reason: str | None, started: float
    ) -> BatchEvent:
        before = self._timeline.head
        step = self._timeline.apply(left, reason=reason)
        if step.step == before:
            return _event(number, batch, left, started)
        event = _event(
            number,
            batch,
            left,
            started,
            step=step.step,
            facts=len(step.added),
            report=step.report,
            record=step,
            weights_digest=step.weights_digest,
        )
        return event if step.kind == "decide" else replace(event, measured=self._measure(step.step))

    def _measure(self, step: int) -> Measurement | None:
        if self._ask is None:
            return None
        found = self._ask(self._timeline, step)
        self._timeline.keep_measurement(found)
        return found

    def _measure_if_cut_off(self) -> None:
        """Ask after the last step of a run that was killed between its commit and this."""
        if self._up_to_date:
            return
        self._up_to_date = True
        history = self._timeline.history()
        last = history.record(history.state_of(history.head))
        if last.kind in MEASURED and all(found.step != last.step for found in self._timeline.measurements()):
            self._measure(last.step)

    def _preview(
        self, trial: Trial, number: int, batch: Sequence[Record], left: Sieved, _: str | None, started: float
    ) -> BatchEvent:
        refused, proposed = None, None
        try:
            proposed = trial.apply(left)
        except StepRefusedError as error:
            refused = str(error)
        if proposed is None and refused is None:
            return _event(number, batch, left, started)
        report = {} if proposed is None else proposed.report
        facts = len(left.facts)
        return _event(number, batch, left, started, facts=facts, report=report, record=proposed, refused=refused)

    @locked
    def _check(self, batch: list[Record], handling: Handling, on: Timeline | Trial) -> tuple[list[Record], Sieved]:
        """The batch without records that the model cannot take (too long for it, for instance), and what is left of it.

        Looks only at what would be edited, so that passing over consumed batches does not need the model.
        """
        left = on.sieve_as(batch, handling)
        wanted = {fact.digest for fact in left.facts}
        if not wanted:
            return batch, left
        from lifelong_edit.tracing.rows import require_rows

        model, editor = self._timeline.bench().loaded, self._timeline.editor()
        sound = []
        for record in batch:
            try:
                if record.fact.digest in wanted:
                    require_rows(model, record.fact)
                    editor.require(record.fact)
                sound.append(record)
            except BadInputError as error:
                place = f"{record.file}:{record.line}: {error}"
                if not self._skip_bad:
                    raise BadInputError(place) from None
                self.summary.bad.append(place)
        return sound, left if len(sound) == len(batch) else on.sieve_as(sound, handling)


def _event(number: int, batch: Sequence[Record], left: Sieved, started: float, **found: Any) -> BatchEvent:
    """found: of the step that was made, or would be; without any nothing was left to do."""
    return BatchEvent(
        batch=number,
        records=len(batch),
        skipped=left.counts(),
        turned_down=left.turned_down,
        batch_facts={record.fact.digest: record.fact for record in batch},
        seconds=time.perf_counter() - started,
        **{"step": None, "facts": 0, "report": {}} | found,
    )
