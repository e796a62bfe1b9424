"""What wrappers have in common: the rule inside does what it does, and of its shift another is made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lifelong_edit.bench import Bench, Say, State, silent
from lifelong_edit.editors.contract import Added, Change, Editor, Entries, KeepsKeys, Lesson, Whole
from lifelong_edit.editors.ridge.together import slices
from lifelong_edit.facts import Fact
from lifelong_edit.models import Overlay
from lifelong_edit.stores import KEYS, WEIGHTS, Dense, FactKeys, materialise
from lifelong_edit.tracing.rows import Row

TRACED = 64
"""Facts whose keys are traced at a time where all are."""
Arrays = Mapping[str, Tensor]
"""By module, (d_in, d_out)."""


class Around:
    """A rule inside of a wrapper; what is not said otherwise is as the rule has it."""

    def __init__(self, bench: Bench, inner: Editor) -> None:
        self.bench, self.inner = bench, inner

    @property
    def phrasings(self) -> int:
        """Those of the rule inside."""
        return self.inner.phrasings

    def require(self, fact: Fact) -> None:
        """Raise BadInputError where the rule inside cannot be taught the fact."""
        self.inner.require(fact)

    def kept_rows(self, facts: Sequence[Fact]) -> Sequence[Row]:
        """The rows whose keys the rule inside keeps."""
        return self.inner.kept_rows(facts)

    def learn(self, state: State, lesson: Lesson) -> Change:
        """What the rule inside proposes; see `Editor.learn`."""
        return self.inner.learn(state, lesson)

    def relearn(
        self,
        facts: Sequence[Fact],
        *,
        start: Mapping[str, Tensor] | None = None,
        identity: str = "",
        say: Say = silent,
    ) -> Change:
        """What the rule inside makes of all facts; see `Editor.relearn`."""
        return self.inner.relearn(facts, start=start, identity=identity, say=say)

    def overlay(self, state: State) -> Overlay:
        """As the rule inside has it."""
        return self.inner.overlay(state)

    def keys_at(
        self,
        shifts: Arrays,
        facts: Sequence[Fact],
        conflict: Mapping[str, Any],
        replaced: Mapping[str, Sequence[Fact]] | None = None,
    ) -> dict[str, FactKeys]:
        """Keys of facts at ΔW, for a wrapper around this one; see `KeepsKeys`. Asked where the rule inside has some."""
        assert isinstance(self.inner, KeepsKeys)
        return self.inner.keys_at(shifts, facts, conflict, replaced)

    def rekeyed(self, change: Change, shifts: Arrays, facts: Mapping[str, Fact], lesson: Lesson) -> Change:
        """A batch's change with its keys traced at ΔW as the wrapper left it; facts: by digest, new and live ones."""
        if KEYS not in change.parts:
            return change
        known = change.keys()
        conflict = {digest: keys.conflict for digest, keys in known.items()}
        keys = self.keys_at(shifts, [facts[digest] for digest in known], conflict, lesson.replaced)
        return replace(change, parts={**change.parts, KEYS: Entries(lambda: iter([keys]))})

    def all_rekeyed(self, change: Change, shifts: Arrays, facts: Sequence[Fact]) -> Change:
        """A change that brings all facts, with their keys traced at ΔW as the wrapper left it."""
        if KEYS not in change.parts:
            return change
        made = partial(self._all_keys, shifts, sorted(facts, key=lambda fact: fact.digest))
        return replace(change, parts={**change.parts, KEYS: Entries(made, whole=True)})

    def _all_keys(self, shifts: Arrays, facts: Sequence[Fact]) -> Iterator[dict[str, FactKeys]]:
        for part in slices(facts, TRACED):
            yield self.keys_at(shifts, part, self.bench.conflict_of(part))


@dataclass(frozen=True)
class Occasion:
    """For what a shift was made. facts: those that are taught; others: live ones beside them; identity: for draws."""

    facts: Sequence[Fact]
    others: Sequence[Fact]
    identity: str


class Reshaped(Around, ABC):
    """A wrapper that makes another shift of each that the rule inside proposes.

    Of a rule that teaches a batch where the state is it is the batch's shift that is changed; of one that begins at the
    base, and where all facts are taught again, all of ΔW.
    """

    @abstractmethod
    def reshaped(self, before: Arrays, moved: Arrays, occasion: Occasion) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What is kept of a shift, by module, and what is told of it. before: ΔW that `moved` is added to."""

    def learn(self, state: State, lesson: Lesson) -> Change:
        """What the rule inside would change, made another; see `Editor.learn`."""
        change = self.inner.learn(state, lesson)
        brought = change.parts[WEIGHTS]
        gone = set(lesson.retire)
        left = {digest: fact for digest, fact in state.live.items() if digest not in gone}
        if isinstance(brought, Whole):
            return self._whole(change, brought, {}, Occasion([*left.values(), *lesson.facts], (), ""))
        assert isinstance(brought, Added)
        moved = {n: torch.from_numpy(materialise(shift)) for n, shift in brought.shift.items()}
        before = {name: shift.float().cpu() for name, shift in state.shifts.items()}
        kept, told = self.reshaped(before, moved, Occasion(lesson.facts, list(left.values()), state.digest))
        shift = Added({name: Dense(found.numpy()) for name, found in kept.items()})
        found = Change({**change.parts, WEIGHTS: shift}, change.report | told)
        return self.rekeyed(found, _sum(before, kept), left | {fact.digest: fact for fact in lesson.facts}, lesson)

    def relearn(
        self,
        facts: Sequence[Fact],
        *,
        start: Mapping[str, Tensor] | None = None,
        identity: str = "",
        say: Say = silent,
    ) -> Change:
        """What the rule inside makes of all facts, made another; see `Editor.relearn`."""
        change = self.inner.relearn(facts, start=start, identity=identity, say=say)
        brought = change.parts[WEIGHTS]
        assert isinstance(brought, Whole)
        return self._whole(change, brought, start or {}, Occasion(facts, (), identity))

    def _whole(self, change: Change, brought: Whole, start: Arrays, occasion: Occasion) -> Change:
        """A change that gives the weights whole, by what it moved them from where it began."""
        before = {name: shift.float().cpu() for name, shift in start.items()}
        found = {name: torch.from_numpy(array) for name, array in brought.arrays.items()}
        moved = {name: shift - before[name] if name in before else shift for name, shift in found.items()}
        kept, told = self.reshaped(before, moved, occasion)
        after = _sum(before, kept)
        parts = {**change.parts, WEIGHTS: Whole({name: shift.numpy() for name, shift in after.items()})}
        return self.all_rekeyed(Change(parts, change.report | told), after, occasion.facts)


def _sum(before: Arrays, kept: Arrays) -> dict[str, Tensor]:
    return {name: before[name] + shift if name in before else shift for name, shift in kept.items()}
