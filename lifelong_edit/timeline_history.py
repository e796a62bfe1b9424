"""What can be told from the log alone: lines of states, live facts, and what a batch has to skip. No torch."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lifelong_edit.errors import UsageError
from lifelong_edit.facts import Fact, Record
from lifelong_edit.policies import identities, normalise, prevails
from lifelong_edit.stores import Place, StepRecord, digest_bytes

STILL = ("rollback", "refused")
"""Kinds of steps that make no state of their own: they stand at their parent's."""
SOLVED = ("reconsolidate", "retract")
"""Kinds of steps that solve again for all live facts together."""
FilePlace = tuple[str, int]
"""The digest of a file's content, and a record's number in it."""
SkipReason = Literal[
    "consumed", "live", "repeated", "contradicted", "rolled-back", "conflict", "quarantined", "not-quarantined"
]


def live_digest(live: Iterable[str]) -> str:
    """The digest of a set of facts, whatever the order in which they came."""
    return digest_bytes("\n".join(sorted(live)).encode())


@dataclass
class Fold:
    """What a line of steps adds up to."""

    live: dict[str, None] = field(default_factory=dict)
    """Live facts in the order in which they came."""
    ever: set[str] = field(default_factory=set)
    """Every fact that was live at some state of the line."""
    places: set[FilePlace] = field(default_factory=set)
    """Every place that was consumed."""
    retracted: set[str] = field(default_factory=set)
    """Facts that were taken back and have not come again since."""
    quarantined: dict[str, int] = field(default_factory=dict)
    """Facts that were put aside and neither reviewed nor dismissed since, with the step that put them aside."""

    def copy(self) -> Fold:
        """One that can go on without changing this one."""
        return Fold(dict(self.live), set(self.ever), set(self.places), set(self.retracted), dict(self.quarantined))

    def take(self, record: StepRecord) -> None:
        """Go on by one step."""
        for digest in record.superseded:
            self.live.pop(digest, None)
        self.live.update(dict.fromkeys(record.added))
        self.retracted.update(record.superseded if record.kind == "retract" else ())
        self.retracted.difference_update(record.added)
        self.ever.update(record.added)
        self.places.update((place.file_digest, place.number) for place in record.places)
        for digest in (*record.report.get("reviewed", ()), *record.added):
            self.quarantined.pop(digest, None)
        aside = [c["new"] for c in record.report.get("conflicts", ()) if c["action"] == "quarantine"]
        self.quarantined.update(dict.fromkeys(aside, record.step))


class History:
    """The steps of a log, and the state at each of them as a fold along its line of parents."""

    def __init__(self, records: Iterable[StepRecord] = (), idle: Mapping[int, Sequence[Place]] | None = None) -> None:
        """idle: places that were consumed at the state of a step with nothing to do there."""
        self.records: list[StepRecord] = []
        self._added: set[str] = set()
        self._consumed: dict[str, set[int]] = {}
        self._idle: dict[int, list[Place]] = {}
        self._cached: tuple[int, Fold] | None = None
        for step, places in (idle or {}).items():
            self.consume(step, places)
        for record in records:
            self.take(record)

    def take(self, record: StepRecord) -> None:
        """Add the next step of the log."""
        self.records.append(record)
        self._added.update(record.added)
        self._note(record.places)

    def consume(self, state: int, places: Sequence[Place]) -> None:
        """Add places that were consumed at the state of a step with nothing to do there."""
        self._idle.setdefault(state, []).extend(places)
        self._note(places)
        if self._cached is not None and self._cached[0] == state:
            self._cached[1].places.update((place.file_digest, place.number) for place in places)
        else:
            self._cached = None

    def _note(self, places: Iterable[Place]) -> None:
        for place in places:
            self._consumed.setdefault(place.file_digest, set()).add(place.number)

    @property
    def head(self) -> int:
        """The last step."""
        return len(self.records) - 1

    def record(self, step: int) -> StepRecord:
        """A step. Raises UsageError where there is none of that number."""
        if not 0 <= step <= self.head:
            raise UsageError(f"there is no step {step}; the log holds steps 0 to {self.head}")
        return self.records[step]

    def state_of(self, step: int) -> int:
        """The step that made the state at `step`: itself, or the one that a rollback went back to, a refusal left."""
        record = self.record(step)
        while record.kind in STILL:
            record = self.records[record.parent]
        return record.step

    def line(self, step: int) -> list[StepRecord]:
        """The steps that made the state at `step`, from `init` on; rollbacks and what they took back are not in it."""
        line: list[StepRecord] = []
        at = self.state_of(step)
        while True:
            record = self.records[at]
            line.append(record)
            if record.parent < 0:
                return line[::-1]
            at = self.state_of(record.parent)

    def fold(self, step: int) -> Fold:
        """Live facts and consumed places at the state of `step`. Kept for the next call: do not change it."""
        state = self.state_of(step)
        new: list[StepRecord] = []
        at, known = state, self._cached
        while known is None or at != known[0]:
            record = self.records[at]
            new.append(record)
            if record.parent < 0:
                known = None
                break
            at = self.state_of(record.parent)
        fold = Fold() if known is None else known[1].copy()
        for record in reversed(new):
            fold.take(record)
            fold.places.update((place.file_digest, place.number) for place in self._idle.get(record.step, ()))
        self._cached = (state, fold)
        return fold

    def live(self, step: int) -> list[str]:
        """Digests of the facts live at the state of `step`, in the order in which they came."""
        return list(self.fold(step).live)

    def live_fact(self, step: int, name: str) -> str:
        """The digest of the live fact that one, or its beginning, names. Raises UsageError for none and for many."""
        found = [digest for digest in self.fold(step).live if digest.startswith(name)] if name else []
        if len(found) == 1:
            return found[0]
        if found:
            raise UsageError(f"{name!r} begins the digests of {len(found)} live facts; expected more of it")
        what = "is not in force" if any(d.startswith(name) for d in self.fold(step).ever) else "names no fact"
        raise UsageError(f"{name!r} {what}; expected the digest of a live fact, see `lifelong-edit facts`")

    def superseded_by(self, step: int, digests: Iterable[str]) -> list[str]:
        """Digests of the facts that the given ones took the place of when they last came, and that are not live."""
        live, came = self.fold(step).live, dict[str, StepRecord]()
        for record in self.line(step):
            came.update(dict.fromkeys(record.added, record))
        conflicts = [(came[digest], digest, c) for digest in digests for c in came[digest].report.get("conflicts", ())]
        replaced = [c["old"] for record, new, c in conflicts if c["new"] == new and c["old"] in record.superseded]
        return [digest for digest in dict.fromkeys(replaced) if digest not in live]

    def since_snapshot(self, step: int) -> int:
        """How many steps of the line follow the last state that is stored whole (or `init`)."""
        count = 0
        for record in reversed(self.line(step)):
            if record.snapshot is not None or record.parent < 0:
                break
            count += 1
        return count

    def edits(self, step: int) -> tuple[int, int]:
        """Edit steps on the line of a step: those since the last try to reconsolidate, and those up to it.

        A refusal stands beside the line, at the state that it left: it counts as a try there.
        """
        since = self.edited_since(step)
        return len(since), sum(record.kind == "edit" for record in self.line(step)) - len(since)

    def edited_since(self, step: int) -> list[StepRecord]:
        """The edit steps on the line of a step since the last try to reconsolidate, see `edits`."""
        line = self.line(step)
        tries, since = self._tries(line), list[StepRecord]()
        for record in line:
            if record.kind == "edit":
                since.append(record)
            if record.step in tries:
                since = []
        return since

    def _tries(self, line: Sequence[StepRecord]) -> dict[int, StepRecord]:
        """By state of a line: the step that solved again for all facts there, or was refused there."""
        solved = {record.step: record for record in line if record.kind in SOLVED}
        return solved | {self.state_of(r.step): r for r in self.records if r.kind == "refused"}

    def retention_left(self, step: int) -> float:
        """The retention that the last try to reconsolidate left behind at a state, by its guard; 1 without a try.

        A refused one left that of the state before it.
        """
        line = self.line(step)
        tries = self._tries(line)
        last = next((tries[r.step] for r in reversed(line) if r.step in tries), None)
        if last is None or "guard" not in last.report:  # a retraction that left no fact
            return 1.0
        left: float = last.report["guard"]["before" if last.kind == "refused" else "after"]["retention"]
        return left

    def forgotten(self, step: int) -> float:
        """How many live facts the edits since the last try were expected to make forgotten, by what they logged."""
        return math.fsum(record.report.get("forecast", {}).get("forgotten", 0.0) for record in self.edited_since(step))

    def forecast(self, step: int) -> dict[str, float | None]:
        """What was forecast when the state at a step was made: the share of the live facts that the last edit was

        expected to make forgotten (`forecast`; None without an edit), and that of all edits since the last try.
        """
        edits = [record for record in self.line(step) if record.kind == "edit"]
        last = edits[-1].report.get("forecast", {}) if edits else {}
        live = last.get("live", 0)
        return {"forecast": last.get("share"), "forecast_since": self.forgotten(step) / live if live else 0.0}

    def staleness(self, step: int) -> dict[str, Any] | None:
        """What the last reconsolidation logged of stale keys, of those that began at a state on the line of a step."""
        line = {record.step for record in self.line(step)}
        found = (r.report["staleness"] for r in reversed(self.records) if "staleness" in r.report and r.parent in line)
        return next(found, None)

    def added(self, digest: str) -> bool:
        """Whether a fact was added by some step of the log."""
        return digest in self._added

    def consumed_in(self, file_digest: str) -> Collection[int]:
        """The numbers of the records consumed of a file with that digest, whatever was rolled back since."""
        return self._consumed.get(file_digest, ())

    def seen_at(self, place: FilePlace) -> bool:
        """Whether some step of the log consumed a place."""
        return place[1] in self.consumed_in(place[0])


@dataclass(frozen=True)
class Skip:
    """A record of a batch that is not applied, and why."""

    fact: str
    reason: SkipReason


@dataclass
class Sieved:
    """A batch after what design calls skipping: what is left of it, what was skipped, what it consumes."""

    facts: list[Fact]
    skips: list[Skip]
    places: list[Place]
    reviewed: list[str] = field(default_factory=list)
    """What leaves quarantine with this batch, whatever becomes of it."""

    @property
    def left(self) -> bool:
        """Whether there is anything to do or to note."""
        return bool(self.facts or self.reviewed)

    def drop(self, digests: frozenset[str], reason: SkipReason) -> None:
        """Skip further facts, in the order of the batch."""
        self.skips += [Skip(fact.digest, reason) for fact in self.facts if fact.digest in digests]
        self.facts = [fact for fact in self.facts if fact.digest not in digests]

    def counts(self) -> dict[str, int]:
        """How many were skipped for each reason."""
        counts: dict[str, int] = {}
        for skip in self.skips:
            counts[skip.reason] = counts.get(skip.reason, 0) + 1
        return counts


def sieve(
    batch: Sequence[Fact] | Sequence[Record],
    history: History,
    step: int,
    *,
    again: bool = False,
    reviewed: bool = False,
    trusted: Sequence[str] = (),
) -> Sieved:
    """Take out of a batch what the state at `step` has no use for.

    Skipped are records consumed at the same place (that of a file before it grew included), facts equal to a live one
    or in quarantine, repetitions within the batch, and records known only from steps that were rolled back unless
    `again`. A fact that was superseded is news when it comes from a new place; a bare fact has no place and counts as
    new each time. reviewed: the batch comes back from review, and what is not in quarantine (any more) is skipped,
    wherever it stands. trusted: see `prevails`.
    """
    fold, result, kept = history.fold(step), Sieved([], [], []), set[str]()
    for item in batch:
        fact = item.fact if isinstance(item, Record) else item
        places = item.places if isinstance(item, Record) else ()
        entry = (item.entry if isinstance(item, Record) else item.digest) if reviewed else None
        reason = _reason(fact.digest, places, entry, fold, history, kept, again)
        if reason not in ("consumed", "rolled-back", "not-quarantined"):
            result.places += [Place(*place, fact.digest) for place in places[:1]]
            result.reviewed += [] if entry is None else [entry]
        if reason is not None:
            result.skips.append(Skip(fact.digest, reason))
        else:
            kept.add(fact.digest)
            result.facts.append(fact)
    result.drop(_contradicted(result.facts, trusted), "contradicted")
    return result


def _reason(
    digest: str,
    places: Sequence[FilePlace],
    entry: str | None,
    fold: Fold,
    history: History,
    kept: set[str],
    again: bool,
) -> SkipReason | None:
    """entry: of a record that comes back from review, the digest under which it is in quarantine."""
    if entry is not None and entry not in fold.quarantined:
        return "not-quarantined"
    consumed = any(place in fold.places for place in places)
    if consumed and entry is None:
        return "consumed"
    if digest in fold.live:
        return "live"
    if digest in kept:
        return "repeated"
    if entry is None and digest in fold.quarantined:
        return "quarantined"
    elsewhere = not consumed and any(history.seen_at(place) for place in places)
    if not again and (elsewhere or (history.added(digest) and digest not in fold.ever)):
        return "rolled-back"
    return None


def _contradicted(facts: Sequence[Fact], trusted: Sequence[str]) -> frozenset[str]:
    """The facts that lose against another one of the same batch: one solve cannot ask for two answers at once."""
    held: dict[tuple[str, ...], list[Fact]] = defaultdict(list)
    lost: set[str] = set()
    for fact in facts:
        names, target = identities(fact), normalise(fact.target)
        rivals = [f for name in names for f in held[name] if f.digest not in lost and normalise(f.target) != target]
        if not all(prevails(fact, rival, trusted)[0] for rival in rivals):
            lost.add(fact.digest)
            continue
        lost.update(rival.digest for rival in rivals)
        for name in names:
            held[name].append(fact)
    return frozenset(lost)
