"""What an examination of a store finds, and what follows from it: which steps can be reached, what is needed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from lifelong_edit.stores.envelopes import IN_THE_CLEAR, Envelopes
from lifelong_edit.stores.identity import Acknowledged
from lifelong_edit.stores.records import StepRecord
from lifelong_edit.stores.schema import StoreMarker
from lifelong_edit.stores.steps import STILL
from lifelong_edit.stores.tables import Head, step_key


class Finding(msgspec.Struct, kw_only=True):
    """Something that is not as it was written."""

    record: str
    """Which: TABLE/KEY, a file of the store's folder, or `data.mdb` with the table and page."""
    problem: str
    steps: list[int] = []
    """The steps that name it, or whose record it is."""
    intact: bool = False
    """Whether it stands as it was written, which then was not what it should have been: a copy loses nothing by it."""


@dataclass
class Entry:
    """What is kept of a step while the rest is looked at."""

    record: StepRecord
    chain: str
    places: int = 0
    """A sum over its places that tells sets of them apart, as does that over the table's."""


@dataclass
class Examination:
    """All that was found, and what a repair needs to know."""

    path: Path
    findings: list[Finding] = field(default_factory=list)
    marker: StoreMarker | None = None
    inside: StoreMarker | None = None
    acknowledged: Acknowledged | None = None
    head: Head | None = None
    steps: dict[int, Entry] = field(default_factory=dict)
    broken: dict[tuple[str, bytes], bytes] = field(default_factory=dict)
    """Sealed records that do not read as what they are, as they stand."""
    blobs: dict[str, int] = field(default_factory=dict)
    """Intact blobs, and their sizes."""
    damaged: set[str] = field(default_factory=set)
    """Blobs that read differently."""
    references: dict[str, int] = field(default_factory=dict)
    places: dict[int, int] = field(default_factory=dict)
    """By step the sum over its places in the table."""
    facts: set[bytes] = field(default_factory=set)
    records: dict[str, int] = field(default_factory=dict)
    """How many records each table has."""
    _cached: tuple[int, tuple[set[str], dict[int, str], dict[int, int]]] | None = None
    envelopes: Envelopes = IN_THE_CLEAR
    locked: str | None = None
    """Of an encrypted store whose key is not at hand: why. Its records are held against their digests, and not read."""
    readable: bool = True
    """Whether every page of the database can be followed."""

    def find(self, record: str, problem: object, steps: list[int] | None = None, *, intact: bool = False) -> None:
        """Note a finding; advice that errors end with is left out."""
        told = str(problem).split("; ")[0]
        self.findings.append(Finding(record=record, problem=told, steps=steps or [], intact=intact))

    @property
    def markers(self) -> list[StoreMarker]:
        """Those that there are, that of the database first."""
        return [marker for marker in (self.inside, self.marker) if marker is not None]

    @property
    def last(self) -> int:
        """The last step that there is a record of, −1 without any."""
        last = max([*self.steps, -1 if self.head is None else self.head.step], default=-1)
        while ("steps", step_key(last + 1)) in self.broken:
            last += 1
        return last

    @property
    def chained(self) -> bool:
        """Whether all steps are there, each following the one before it."""
        return sorted(self.steps) == list(range(self.last + 1)) and all(
            self.steps[n].record.previous == (self.steps[n - 1].chain if n else "") for n in self.steps
        )

    @property
    def dropped(self) -> set[str]:
        """Blobs that were dropped on purpose and have not come again since."""
        return self._compacted()[0]

    def _compacted(self) -> tuple[set[str], dict[int, str], dict[int, int]]:
        """What steps of compaction add up to: blobs dropped, ΔW whole by state, states out of reach by which step."""
        if self._cached is None or self._cached[0] != len(self.steps):
            dropped, wholes, gone = set[str](), dict[int, str](), dict[int, int]()
            for number, entry in sorted(self.steps.items()):
                dropped.update(entry.record.dropped)
                dropped.difference_update(entry.record.blobs)
                wholes.update(entry.record.wholes)
                gone.update(dict.fromkeys(entry.record.out_of_reach, number))
            self._cached = len(self.steps), (dropped, wholes, gone)
        return self._cached[1]

    @property
    def unreferenced(self) -> list[str]:
        """Intact blobs that neither a step nor the head names: nothing is lost with them."""
        named = self.named()
        return [] if self.last + 1 != len(self.steps) else [blob for blob in self.blobs if blob not in named]

    def named(self) -> dict[str, list[int]]:
        """Blobs that steps or the head name, with the steps that do."""
        found: dict[str, list[int]] = {}
        for number, entry in sorted(self.steps.items()):
            for digest in entry.record.blobs:
                found.setdefault(digest, []).append(number)
        if self.head is not None and self.head.weights is not None:
            found.setdefault(self.head.weights, []).append(self.head.step)
        return found

    def whole(self, step: int) -> str | None:
        """The blob in which the ΔW of the state that a step made is stored whole."""
        dropped, wholes, _ = self._compacted()
        found = (self.steps[step].record.snapshot, wholes.get(step))
        return next((digest for digest in found if digest is not None and digest not in dropped), None)

    def state_of(self, step: int) -> int:
        """The step that made the state at a step; where a record on the way is missing, the last that is there."""
        while (entry := self.steps[step]).record.kind in STILL and entry.record.parent in self.steps:
            step = entry.record.parent
        return step

    def unreachable(self) -> dict[int, str]:
        """The steps whose weights cannot be had any more, with the first thing that is missing for them."""
        why: dict[int, str | None] = {}
        for number, entry in sorted(self.steps.items()):
            shift, whole, parent = entry.record.shift, self.whole(number), entry.record.parent
            if whole is not None and whole not in self.blobs:
                why[number] = f"ΔW of step {number}, blob {whole}, is damaged or missing"
            elif whole is not None or parent < 0:
                why[number] = None
            elif shift is not None and shift not in self.blobs:
                why[number] = f"the shift of step {number}, blob {shift}, is damaged or missing"
            elif parent not in self.steps or parent >= number:
                why[number] = f"the record of step {parent} is damaged or missing"
            else:
                why[number] = why[parent]
        if self.head is not None and self.head.weights in self.blobs and self.head.step in self.steps:
            state = self.state_of(self.head.step)
            for number in self.steps:
                if self.state_of(number) == state:
                    why[number] = None
        for number in self.steps:
            if (by := self._compacted()[2].get(self.state_of(number))) is not None:
                why[number] = f"what its state needs was dropped by step {by}"
        found = {number: reason for number, reason in why.items() if reason is not None}
        found |= {n: "its record is damaged or missing" for n in range(self.last + 1) if n not in self.steps}
        return dict(sorted(found.items()))


def count_references(found: Examination) -> dict[str, int]:
    """How many steps name each blob, by the steps themselves."""
    counts: dict[str, int] = {}
    for entry in found.steps.values():
        for digest in entry.record.blobs:
            counts[digest] = counts.get(digest, 0) + 1
    return counts
