"""What lies between two states: facts and weights from the log alone, answers by asking the model at both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lifelong_edit.facts import Fact
from lifelong_edit.settings import StoreSettings
from lifelong_edit.stores import Weights
from lifelong_edit.timeline.history import History, live_digest
from lifelong_edit.timeline.locking import Lock, locked
from lifelong_edit.timeline.names import StepName
from lifelong_edit.timeline.view import View

SAMPLE = 50
"""How many facts in force at both states are asked, unless told otherwise."""


@dataclass(frozen=True)
class Change:
    """How far a module's weights moved, in Frobenius norms. share: `norm` of that of ΔW at the first; inf from none."""

    norm: float
    share: float


@dataclass(frozen=True)
class Diff:
    """From the state of the step `one` to that of `other`: facts by digest, weights by module.

    ancestor: the last state that their lines have in common, by the step that made it.
    """

    one: int
    other: int
    ancestor: int
    added: tuple[str, ...]
    """In force at `other` alone, in the order in which they came there."""
    superseded: dict[str, str | None]
    """In force at `one`, and replaced on the line of `other`: by which fact, where the log says it."""
    retracted: tuple[str, ...]
    """In force at `one`, and taken back on the line of `other`."""
    unknown: tuple[str, ...]
    """In force at `one`, and never on the line of `other`, which is an earlier state or another branch."""
    kept: tuple[str, ...]
    """In force at both."""
    weights: dict[str, Change]

    @property
    def differing(self) -> tuple[str, ...]:
        """The facts that are in force at one of the two states alone."""
        return (*self.added, *self.superseded, *self.retracted, *self.unknown)


@dataclass(frozen=True)
class Answer:
    """What the two states say to the prompt of a fact, as many tokens as its target has and a few more."""

    fact: str
    prompt: str
    target: str
    before: str
    after: str

    @property
    def changed(self) -> bool:
        """Whether the two are not the same text."""
        return self.before != self.after


def compare(history: History, weights: Callable[[StepName], Weights], one: StepName, other: StepName) -> Diff:
    """The difference of two states. weights: ΔW at a step. Raises UsageError where there is no such step."""
    first, second = history.resolve(one), history.resolve(other)
    before, after = history.fold(first), history.fold(second)
    gone = [digest for digest in before.live if digest not in after.live]
    by = {
        met.old: met.new
        for record in history.line(second)
        for met in record.conflicts
        if met.old in record.superseded and met.new in record.added
    }
    retracted = tuple(digest for digest in gone if digest in after.retracted)
    return Diff(
        one=first,
        other=second,
        ancestor=history.ancestor(first, second),
        added=tuple(digest for digest in after.live if digest not in before.live),
        superseded={digest: by.get(digest) for digest in gone if digest in after.ever - after.retracted.keys()},
        retracted=retracted,
        unknown=tuple(digest for digest in gone if digest not in after.ever),
        kept=tuple(digest for digest in before.live if digest in after.live),
        weights=_changes(weights(first), weights(second)),
    )


def _changes(one: Weights, other: Weights) -> dict[str, Change]:
    found = {}
    for name in sorted(one, key=_in_order):
        array = one[name]
        norm = float(np.linalg.norm(other[name].astype(np.float64) - array))
        start = float(np.linalg.norm(array.astype(np.float64)))
        found[name] = Change(norm, norm / start if start else float("inf") if norm else 0.0)
    return found


def _in_order(module: str) -> list[tuple[int, str]]:
    """Layer 10 after layer 2; stored tensors come in any order."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in module.split(".")]


class Compared(Protocol):
    """Whose states are compared: a timeline."""

    @property
    def settings(self) -> StoreSettings:
        """What was fixed at `init`."""

    @property
    def lock(self) -> Lock:
        """Held meanwhile."""

    def facts_by_digest(self, digests: Sequence[str]) -> dict[str, Fact]:
        """Facts by digest."""

    def at(self, step: StepName) -> View:
        """The state at a step."""


@locked
def answers(timeline: Compared, diff: Diff, *, sample: int = SAMPLE) -> list[Answer]:
    """The greedy answers of both states to the prompts of all facts that differ and of a sample of those that do not.

    The sample is a function of the store's seed and of the facts in force at both. Loads the model. The
    facts that differ come first.
    """
    from lifelong_edit.tracing.rows import draw

    kept = sorted(diff.kept)
    chosen = [kept[i] for i in draw(len(kept), sample, "diff", timeline.settings.seed, live_digest(kept))]
    facts = list(timeline.facts_by_digest([*diff.differing, *chosen]).values())
    before, after = (_ask(timeline.at(step), facts) for step in (diff.one, diff.other))
    told = zip(facts, before, after, strict=True)
    return [Answer(fact.digest, fact.prompt, fact.target, one, other) for fact, one, other in told]


def _ask(view: View, facts: Sequence[Fact]) -> list[str]:
    from lifelong_edit.tasks import leading, task_of

    with view.standing() as loaded:
        task = task_of(loaded)
        asked = [(leading(loaded, fact), fact.answer) for fact in facts]
        lengths = [len(task.encode(loaded, *pair).answer) + task.margin(pair[0]) for pair in asked]
        found = task.answer(loaded, [question for question, _ in asked], lengths)
        return [task.judge(loaded, *pair, new).text for pair, new in zip(asked, found, strict=True)]
