"""Facts by what became of them, conflicts that were found, and records put aside for review. No torch.

The log is the truth: the step that puts a record aside holds its conflicts, and the store its fact. What a user reviews
is a file made from it, at any time, of any state.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from lifelong_edit.errors import UsageError
from lifelong_edit.facts import Fact
from lifelong_edit.facts.given import Given, Item, as_digests
from lifelong_edit.facts.shapes import QUARANTINED
from lifelong_edit.stores import Decide, StepRecord
from lifelong_edit.timeline.base import Facet
from lifelong_edit.timeline.commit import UNMADE, Draft
from lifelong_edit.timeline.history import named
from lifelong_edit.timeline.locking import locked
from lifelong_edit.timeline.names import StepName

Which = Literal["live", "superseded", "retracted", "quarantined", "all"]


@dataclass(frozen=True)
class Quarantined:
    """A record that was put aside. step: the one that did so; conflicts: as it logged them, of this record alone."""

    fact: Fact
    step: int
    conflicts: Sequence[dict[str, Any]]
    met: Sequence[Fact]
    """The live fact of each conflict."""

    def as_record(self) -> dict[str, Any]:
        """The native record, and in `quarantined` what it met: `stream` takes it as it is."""
        met = []
        for conflict, old in zip(self.conflicts, self.met, strict=True):
            told = {"kind": conflict["kind"], "probability": conflict["probability"], "fact": old.digest}
            said = {name: getattr(old, name) for name in ("prompt", "target", "date", "source")}
            met.append(told | {name: value for name, value in said.items() if value is not None})
        where = {"fact": self.fact.digest, "step": self.step, "met": met}
        return {**msgspec.to_builtins(self.fact), QUARANTINED: where}


def purged_fact(digest: str) -> Fact:
    """What is shown in the place of a fact whose text was dropped; it has the digest of that one."""
    fact = Fact(subject="(purged)", prompt="(purged)", target="(purged)")
    vars(fact)["digest"] = digest  # where `cached_property` looks first
    return fact


class Reviewing(Facet):
    """The facet of a timeline that tells what became of facts, and sees to the records in quarantine."""

    @abstractmethod
    def facts_by_digest(self, digests: Sequence[str]) -> dict[str, Fact]:
        """Facts of the store by digest."""

    @locked
    def facts(self, state: Which = "live", *, at: StepName | None = None) -> list[Fact]:
        """Facts at the head, or as of the step `at`.

        state: those in force, those that others took the place of, those that were taken back, those in quarantine, or
        all that ever were in force; none that was purged.
        """
        fold = self.history().fold(self.head if at is None else at)
        chosen = {
            "live": list(fold.live),
            "superseded": sorted(fold.ever - fold.live.keys() - fold.retracted.keys()),
            "retracted": sorted(fold.retracted),
            "quarantined": list(fold.quarantined),
            "all": [*fold.live, *sorted(fold.ever - fold.live.keys())],
        }
        if state not in chosen:
            raise UsageError(f"facts can be {', '.join(chosen)}; found {state!r}")
        purged = self.history().purged
        return list(self.facts_by_digest([digest for digest in chosen[state] if digest not in purged]).values())

    @locked
    def conflicts(self, *, at: StepName | None = None) -> list[dict[str, Any]]:
        """Every conflict that was logged up to the head, or the step `at`, oldest first; as of `policies.Conflict`.

        With its `step`, and whether its new record is `pending`: in quarantine at that state.
        """
        step = self.head if at is None else at
        pending = self.history().fold(step).quarantined
        return [
            {
                "step": r.step,
                "by": None,
                **met.told(),
                "pending": met.action == "quarantine" and pending.get(met.new) == r.step,
            }
            for r in self.history().line(step)
            for met in r.conflicts
        ]

    @locked
    def facts_of(self, conflicts: Iterable[Mapping[str, Any]]) -> dict[str, Fact]:
        """The facts that conflicts are about, by digest.

        The new one is missing where it was turned away by an early release, which logged its digest alone.
        """
        told = list(conflicts)
        ever = {digest for record in self.history().records for digest in record.added}
        new = [c["new"] for c in told if c["by"] is not None or c["new"] in ever]
        return self.facts_by_digest(list(dict.fromkeys([*(c["old"] for c in told), *new])))

    @locked
    def quarantined(self, *, at: StepName | None = None) -> list[Quarantined]:
        """The records in quarantine at the head, or as of the step `at`, in the order in which they were put aside."""
        history, step = self.history(), self.head if at is None else at
        found = []
        for digest, put in history.fold(step).quarantined.items():
            own = [met for met in history.record(put).conflicts if met.new == digest]
            facts = self.facts_by_digest([digest, *(met.old for met in own)])
            found.append(Quarantined(facts[digest], put, [m.told() for m in own], [facts[m.old] for m in own]))
        return found

    @locked
    def dismiss(self, facts: Given | str | Iterable[Item | str], *, reason: str | None = None) -> StepRecord:
        """Take records out of quarantine without editing them, as one step; it loads no model.

        facts: digests, beginnings of them that name one record in quarantine, or facts as `apply` takes them. Raises
        UsageError for a name of none or of several.
        """
        self._refuse_read_only(reason)
        names = as_digests(facts, "no record to dismiss was given; see `lifelong-edit conflicts --quarantined`")
        history = self.history()
        pending, see = history.fold(self.head).quarantined, "conflicts --quarantined"
        gone = list(dict.fromkeys(named(name, pending, "record", "in quarantine", see) for name in names))
        state = history.state_of(self.head)
        record = Decide(**UNMADE, parent=state, reviewed=tuple(gone), reason=reason)
        return self._commit(Draft(record=record, weights=self.weights(state)))
