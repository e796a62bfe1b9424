"""What can be told from the log alone: lines of states, and what is live at each. No torch."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, takewhile
from typing import Any, SupportsIndex

import msgspec

from lifelong_edit.errors import UsageError
from lifelong_edit.facts.checks import shown
from lifelong_edit.stores import KEYS, STILL, WEIGHTS, Part, Place, StepRecord, digest_bytes
from lifelong_edit.timeline.names import HEAD_NAME, Names, StepName, listed
from lifelong_edit.tracked import Tracked

SOLVED = ("reconsolidate", "retract")
"""Kinds of steps that solve again for all live facts together."""
SHORTEST = 4
"""Letters of a digest that name a fact."""
FilePlace = tuple[str, int]
"""The digest of a file's content, and a record's number in it."""


def live_digest(live: Iterable[str]) -> str:
    """The digest of a set of facts, whatever the order in which they came."""
    return digest_in_order(sorted(live))


def digest_in_order(live: Iterable[str]) -> str:
    """The same of facts that are sorted by their digests already."""
    return digest_bytes("\n".join(live).encode())


@dataclass
class Fold:
    """What a line of steps adds up to."""

    live: Tracked[None] = field(default_factory=Tracked)
    """Live facts in the order in which they came."""
    came: dict[str, int] = field(default_factory=dict)
    """By fact the step that taught it last, which has its conflicts; a retraction that brings it back has none."""
    ever: set[str] = field(default_factory=set)
    """Every fact that was live at some state of the line."""
    places: set[FilePlace] = field(default_factory=set)
    """Every place that was consumed."""
    retracted: dict[str, int] = field(default_factory=dict)
    """Facts that were taken back and have not come again since, with the step that took them back."""
    quarantined: dict[str, int] = field(default_factory=dict)
    """Facts that were put aside and neither reviewed nor dismissed since, with the step that put them aside."""
    aside: set[str] = field(default_factory=set)
    """Every fact that was put aside at some state of the line."""
    dismissed: dict[str, int] = field(default_factory=dict)
    """Facts that left quarantine untaught and have not come again since, with the step: those that `dismiss` took out,
    and those that were corrected in review."""

    def copy(self) -> Fold:
        """One that can go on without changing this one."""
        return Fold(**{name: value.copy() for name, value in vars(self).items()} | {"live": Tracked(self.live)})

    def take(self, record: StepRecord) -> None:
        """Go on by one step."""
        for digest in record.superseded:
            self.live.pop(digest, None)
        self.live.update(dict.fromkeys(record.added))
        if record.kind == "retract":
            self.retracted.update(dict.fromkeys(record.superseded, record.step))
        else:
            self.came.update(dict.fromkeys(record.added, record.step))
        self.ever.update(record.added)
        self.places.update((place.file_digest, place.number) for place in record.places)
        # One that comes back from review as it was, and is skipped there, met a fact that makes it needless.
        untaught = set(record.reviewed).difference(record.added, record.skipped)
        _drop(self.quarantined, record.reviewed, record.added)
        self.dismissed.update(dict.fromkeys(untaught, record.step))
        _drop(self.dismissed, record.added, record.aside)
        _drop(self.retracted, record.added)
        self.quarantined.update(dict.fromkeys(record.aside, record.step))
        self.aside.update(record.aside)


def _drop(held: dict[str, int], *digests: Iterable[str]) -> None:
    for digest in chain(*digests):
        held.pop(digest, None)


def named(name: str, digests: Iterable[str], what: str, where: str, see: str = "facts") -> str:
    """The one of the digests that `name` is, or begins.

    what, where: "fact", "in force", for messages; see: the command that lists them. Raises UsageError for none, for
    several, and for what is too short to mean a fact: a number, as likely as not, that was meant for a step.
    """
    if not isinstance(name, str):
        raise UsageError(f"found {shown(name)} as the name of a {what}, expected its digest; see `lifelong-edit {see}`")
    if len(name) < SHORTEST:
        raise UsageError(
            f"{name!r} is too short to name a {what}; expected at least {SHORTEST} letters of its digest, see "
            f"`lifelong-edit {see}`"
        )
    found = [digest for digest in digests if digest.startswith(name)]
    if len(found) == 1:
        return found[0]
    said = f"begins the digests of {len(found)} {what}s {where}" if found else f"names no {what} {where}"
    raise UsageError(f"{name!r} {said}; expected the digest of one, or more of it, see `lifelong-edit {see}`")


class History:
    """The steps of a log, and the state at each of them as a fold along its line of parents."""

    def __init__(self, records: Iterable[StepRecord] = (), idle: Mapping[int, Sequence[Place]] | None = None) -> None:
        """idle: places that were consumed at the state of a step with nothing to do there."""
        self.records: list[StepRecord] = []
        self.names = Names()
        self.dropped: set[str] = set()
        """Blobs that were dropped on purpose and have not come again since."""
        self._out_of_reach: dict[int, StepRecord] = {}
        self._wholes: dict[int, str] = {}
        self.purged: dict[str, int] = {}
        """Facts whose text was dropped and has not come again since, with the step that dropped it."""
        self._made_on: list[str] = []
        self._dated_back: dict[int, int] = {}
        self._latest = -1
        self._consumed: dict[str, set[int]] = {}
        self._idle: dict[int, list[Place]] = {}
        self._cached: tuple[int, Fold] | None = None
        self._edits: list[int] = []
        """By step how many edit steps are on its line."""
        self._refused: dict[int, StepRecord] = {}
        """By state the last try to solve again for all facts that was refused there."""
        for record in records:
            self.take(record)
        for step, places in (idle or {}).items():
            self.consume(step, places)

    def copy(self) -> History:
        """One that can go on without changing this one."""
        return History(self.records, self._idle)

    def take(self, record: StepRecord) -> None:
        """Add the next step of the log."""
        self.records.append(record)
        if self._latest >= 0 and record.time < self.records[self._latest].time:
            self._dated_back[record.step] = self._latest
        else:
            self._latest = len(self.records) - 1
        self.dropped.update(record.dropped)
        self.dropped.difference_update(record.blobs)
        self._out_of_reach.update(dict.fromkeys(record.out_of_reach, record))
        self._wholes.update(record.wholes)
        self.purged.update(dict.fromkeys(record.purged, record.step))
        _drop(self.purged, record.added, (met.new for met in record.conflicts))
        self.names.take(record)
        self._made_on.append(self.names.current)
        self._note(record.places)
        before = self._edits[self.state_of(record.parent)] if record.parent >= 0 else 0
        self._edits.append(before + (record.kind == "edit"))
        if record.kind == "refused":
            self._refused[self.state_of(record.step)] = record
        if self._cached is None or record.kind in STILL or record.parent < 0:
            return
        state, fold = self._cached
        if self.state_of(record.parent) == state:
            # whoever goes on batch by batch has the state before: to copy it would take longer than a small batch
            fold.take(record)
            self._cached = (record.step, fold)

    def consume(self, state: int, places: Sequence[Place]) -> None:
        """Add places that were consumed at the state of a step with nothing to do there."""
        self._idle.setdefault(state, []).extend(places)
        self._note(places)
        found = [(place.file_digest, place.number) for place in places]
        if (branch := self.names.branches.get(self._made_on[state])) is not None:
            branch.places.update(found)
        if self._cached is not None and self._cached[0] == state:
            self._cached[1].places.update(found)
        else:
            self._cached = None

    def _note(self, places: Iterable[Place]) -> None:
        for place in places:
            self._consumed.setdefault(place.file_digest, set()).add(place.number)

    @property
    def head(self) -> int:
        """The last step."""
        return len(self.records) - 1

    def resolve(self, step: StepName) -> int:
        """The number of a step that is given by number, tag, branch or `head`. Raises UsageError where there is none.

        A branch stands for its tip, a tag for the step whose state it names.
        """
        if isinstance(step, str) and not step.removeprefix("-").isdecimal():
            found = self.head if step.casefold() == HEAD_NAME else self.names.find(step)
            if found is None:
                known = self.names.tags.keys() | self.names.branches.keys()
                raise UsageError(f"{step!r} names no step; expected a number from 0 to {self.head}, or {listed(known)}")
            return found
        if isinstance(step, bool) or not isinstance(step, str | SupportsIndex):
            raise UsageError(f"found {shown(step)} as a step, expected a number, a tag, a branch or head")
        number = int(step) if isinstance(step, str) else operator.index(step)
        if not 0 <= number <= self.head:
            raise UsageError(f"there is no step {number}; the log holds steps 0 to {self.head}")
        return number

    def record(self, step: StepName) -> StepRecord:
        """A step. Raises UsageError where there is none of that number or name."""
        return self.records[self.resolve(step)]

    def dated_back(self, step: int) -> int | None:
        """The earlier step that is dated after a step, by a clock that was set back; None where time goes on.

        The latest of them. Nothing goes by these times: steps are in the order of their numbers.
        """
        return self._dated_back.get(step)

    def made_on(self, step: int) -> str:
        """The branch on which a step was made; of a branch or a switch, the one that it led to."""
        return self._made_on[step]

    def protected(self) -> dict[int, list[str]]:
        """The states that have to stay within reach, by the step that made each: what names it.

        The head's, every tag's and every branch's; names are those of tags and branches, and `head`.
        """
        named = [*self.names.tags.items(), *((name, branch.tip) for name, branch in self.names.branches.items())]
        held: dict[int, list[str]] = {}
        for name, step in [(HEAD_NAME, self.head), *named]:
            held.setdefault(self.state_of(step), []).append(name)
        return held

    def whole(self, record: StepRecord) -> str | None:
        """The blob in which the state that a step made is stored whole, None where it is not."""
        found = (record.snapshot, self._wholes.get(record.step))
        return next((digest for digest in found if digest is not None and digest not in self.dropped), None)

    def kept(self, blobs: Iterable[str]) -> list[str]:
        """Those of a step's blobs that were not dropped on purpose."""
        return [digest for digest in blobs if digest not in self.dropped]

    def part(self, record: StepRecord, name: str) -> Part | None:
        """What a step brought to a part, as far as it was not dropped since; None where it never brought anything.

        A shift that led to a state which is stored whole is not needed any more: it may be dropped, and is left out.
        """
        part = record.parts.get(name)
        if part is None:
            return None
        whole = self.whole(record) if name == WEIGHTS else part.whole
        return msgspec.structs.replace(part, change=tuple(self.kept(part.change)), whole=whole)

    def parts(self, step: StepName, name: str) -> list[Part]:
        """What the line of a step brought to a part of its state, oldest first: what `stores.replay` goes along."""
        found = (self.part(record, name) for record in self.line(step))
        return [part for part in found if part is not None]

    def further_parts(self, step: StepName) -> list[str]:
        """The parts beside weights and keys that the line of a step brought anything to, sorted."""
        return sorted({name for record in self.line(step) for name in record.parts} - {WEIGHTS, KEYS})

    def dropped_by(self, step: StepName) -> StepRecord | None:
        """The step that put the state at a step out of reach, None where it is within."""
        return self._out_of_reach.get(self.state_of(step))

    def require_kept(self, step: StepName) -> None:
        """Raise UsageError, naming the step that dropped it, where the state at a step is out of reach."""
        if (by := self.dropped_by(step)) is not None:
            kept = listed({str(record.step) for record in self.records if self.dropped_by(record.step) is None})
            raise UsageError(
                f"what the state at step {self.state_of(step)} needs was dropped by step {by.step} ({by.kind}, "
                f"{by.time[:10]}); expected {kept}; a backup from before has it"
            )

    def ancestor(self, one: StepName, other: StepName) -> int:
        """The last state that the lines of two steps have in common, by the step that made it; at the least step 0."""
        common = {record.step for record in self.line(one)}
        return max(record.step for record in self.line(other) if record.step in common)

    def state_of(self, step: StepName) -> int:
        """The step that made the state at `step`: itself, or the one that a rollback went back to, a refusal left."""
        record = self.record(step)
        while record.kind in STILL:
            record = self.records[record.parent]
        return record.step

    def line(self, step: StepName) -> list[StepRecord]:
        """The steps that made the state at `step`, from `init` on; rollbacks and what they took back are not in it."""
        return list(self.back(step))[::-1]

    def back(self, step: StepName) -> Iterator[StepRecord]:
        """The line of a step from its end on: for whoever need not go all the way."""
        at = self.state_of(step)
        while at >= 0:
            record = self.records[at]
            yield record
            at = self.state_of(record.parent) if record.parent >= 0 else -1

    def after(self, state: int, step: StepName) -> list[StepRecord] | None:
        """The steps on the line of `step` after the one that made a state; None where that is not on the line."""
        found: list[StepRecord] = []
        at = self.state_of(step)
        while at > state and self.records[at].parent >= 0:
            found.append(self.records[at])
            at = self.state_of(self.records[at].parent)
        return found[::-1] if at == state else None

    def fold(self, step: StepName) -> Fold:
        """Live facts and consumed places at the state of `step`.

        Kept for the next call: do not change it. It goes on with the next step of its state that is taken.
        """
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
        if known is not None and not new:
            return known[1]
        fold = Fold() if known is None else known[1].copy()
        for record in reversed(new):
            fold.take(record)
            fold.places.update((place.file_digest, place.number) for place in self._idle.get(record.step, ()))
        self._cached = (state, fold)
        return fold

    def live(self, step: StepName) -> list[str]:
        """Digests of the facts live at the state of `step`, in the order in which they came."""
        return list(self.fold(step).live)

    def live_fact(self, step: int, name: str) -> str:
        """The digest of the live fact that one, or its beginning, names. Raises UsageError for none and for many."""
        return named(name, self.fold(step).live, "fact", "in force")

    def retractable(self, step: int, name: str) -> str:
        """As `live_fact`; where no live fact is meant, of the superseded ones: they may be kept from being revived."""
        fold = self.fold(step)
        live = [digest for digest in fold.live if isinstance(name, str) and digest.startswith(name)]
        replaced = fold.ever - fold.live.keys() - fold.retracted.keys() - set(self.purged)
        return named(name, live or sorted(replaced), "fact", "in force or superseded")

    def superseded_by(self, step: int, digests: Iterable[str]) -> list[str]:
        """Digests of the facts that the given ones took the place of when they last came, and that are not live."""
        fold = self.fold(step)
        came = [(digest, self.records[fold.came[digest]]) for digest in digests if digest in fold.came]
        replaced = [
            met.old
            for digest, record in came
            for met in record.conflicts
            if met.new == digest and met.old in record.superseded
        ]
        return [digest for digest in dict.fromkeys(replaced) if digest not in fold.live]

    def predecessors(self, step: int, digests: Iterable[str]) -> list[str]:
        """The given facts, those that they took the place of, and so on back, these as far as they are not live.

        Those that were purged are not among them.
        """
        found = dict.fromkeys(digests)
        coming = list(found)
        while coming:
            coming = [digest for digest in self.superseded_by(step, coming) if digest not in found]
            found.update(dict.fromkeys(coming))
        return [digest for digest in found if digest not in self.purged]

    def holding(self, facts: Collection[str]) -> set[int]:
        """The steps whose states hold something of one of the given facts: in ΔW, keys, or the editor's state.

        From the step that taught it on, or taught another one in its words, up to the next one that solved for all live
        facts from the base weights without it.
        """
        wanted, found, live_at = set(facts), set[int](), dict[int, set[str]]()
        for record in self.records:
            if record.kind in STILL:
                continue
            before = self.state_of(record.parent) if record.parent >= 0 else -1
            live = (live_at.get(before, set()) - set(record.superseded)) | wanted.intersection(record.added)
            live_at[record.step] = live
            anew = record.kind in SOLVED and not record.start
            words = {digest for digests in record.in_words_of.values() for digest in digests}
            if live or not wanted.isdisjoint(words) or (before in found and not anew):
                found.add(record.step)
        return found

    def since_snapshot(self, step: int) -> int:
        """How many steps of the line follow the last state that is stored whole (or `init`)."""
        count = 0
        for record in self.back(step):
            if self.whole(record) is not None or record.parent < 0:
                break
            count += 1
        return count

    def edits(self, step: StepName) -> tuple[int, int]:
        """Edit steps on the line of a step: those since the last try to reconsolidate, and those up to it.

        A refusal stands beside the line, at the state that it left: it counts as a try there.
        """
        since = self.edited_since(step)
        return len(since), self._edits[self.state_of(step)] - len(since)

    def edited_since(self, step: StepName) -> list[StepRecord]:
        """The edit steps on the line of a step since the last try to reconsolidate, see `edits`."""
        untried = takewhile(lambda record: self._try_at(record) is None, self.back(step))
        return [record for record in untried if record.kind == "edit"][::-1]

    def _try_at(self, record: StepRecord) -> StepRecord | None:
        """The last step that solved again for all facts at the state that a step made, or was refused there."""
        return self._refused.get(record.step) or (record if record.kind in SOLVED else None)

    def retention_left(self, step: int) -> float:
        """The retention that the last try to reconsolidate left behind at a state, by its guard; 1 without a try.

        A refused one left that of the state before it.
        """
        tries = (self._try_at(record) for record in self.back(step))
        last = next((found for found in tries if found is not None), None)
        if last is None or last.guard is None:  # a retraction that left no fact
            return 1.0
        left = last.guard.before if last.kind == "refused" else last.guard.after
        return 1.0 if left is None or left.retention is None else left.retention

    def forgotten(self, step: int) -> float:
        """How many live facts the edits since the last try were expected to make forgotten, by what they logged."""
        made = (record.forecast for record in self.edited_since(step))
        return math.fsum(found.forgotten or 0.0 for found in made if found is not None)

    def forecast(self, step: int) -> dict[str, float | None]:
        """What was forecast when the state at a step was made: the share of the live facts that the last edit was

        expected to make forgotten (`forecast`; None without an edit), and that of all edits since the last try.
        """
        edit = next((record for record in self.back(step) if record.kind == "edit"), None)
        last = None if edit is None else edit.forecast
        live = 0 if last is None else last.live or 0
        share = None if last is None else last.share
        return {"forecast": share, "forecast_since": self.forgotten(step) / live if live else 0.0}

    def staleness(self, step: int) -> dict[str, Any] | None:
        """What the last reconsolidation logged of stale keys, of those that began at a state on the line of a step."""
        line = {record.step for record in self.line(step)}
        measured = (record.staleness for record in reversed(self.records) if record.parent in line)
        return next((found.told() for found in measured if found is not None), None)

    def added(self, digest: str) -> bool:
        """Whether a fact was added by some step made on the current branch."""
        return digest in self.names.branches[self.names.current].added

    def consumed_in(self, file_digest: str) -> Collection[int]:
        """The numbers of the records consumed of a file with that digest, whatever was rolled back since."""
        return self._consumed.get(file_digest, ())

    def seen_at(self, place: FilePlace) -> bool:
        """Whether a place was consumed by some step made on the current branch, or at one with nothing to do there."""
        return place in self.names.branches[self.names.current].places
