"""How long facts survive, and which are lost: what was asked along a stream, fact by fact."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lifelong_edit.stores import Measurement, Outcome


@dataclass(frozen=True)
class Spell:
    """How long a fact was answered. ended: whether it was found to be lost then, or only not asked any longer."""

    fact: str
    taught: int
    length: int
    """In batches since its own."""
    ended: bool


@dataclass(frozen=True)
class Survival:
    """The Kaplan–Meier estimate: share of facts still answered after so many batches. at_risk, lost: facts at each."""

    ages: tuple[int, ...]
    share: tuple[float, ...]
    at_risk: tuple[int, ...]
    lost: tuple[int, ...]


@dataclass(frozen=True)
class Lost:
    """A live fact that was answered and is not any more."""

    then: Outcome
    """When it was asked for the first time."""
    now: Outcome
    """When it was asked for the last time."""
    asked_at: int
    """The step of that."""


def histories(measurements: Sequence[Measurement]) -> dict[tuple[str, int], list[tuple[int, Outcome]]]:
    """By fact and the step that taught it: when its own prompt was asked, and how that came out."""
    found: dict[tuple[str, int], list[tuple[int, Outcome]]] = {}
    for measurement in sorted(measurements, key=lambda m: m.step):
        for outcome in measurement.outcomes:
            if outcome.measure == "efficacy":
                found.setdefault((outcome.fact, outcome.taught), []).append((measurement.step, outcome))
    return found


def spells(measurements: Sequence[Measurement]) -> list[Spell]:
    """How long each fact that was answered when it was asked first was answered, in batches.

    A fact is lost at the first question that it fails. It may have been lost a little earlier: not every fact is asked
    after every batch.
    """
    batches = sorted({step for measurement in measurements for step in measurement.live})
    found = list[Spell]()
    for (fact, taught), asked in histories(measurements).items():
        if not asked[0][1].generated:
            continue
        failed = next((step for step, outcome in asked if not outcome.generated), None)
        until = asked[-1][0] if failed is None else failed
        length = max(0, bisect_right(batches, until) - bisect_right(batches, taught))
        found.append(Spell(fact, taught, length, failed is not None))
    return found


def kaplan_meier(spells: Iterable[Spell]) -> Survival:
    """The product-limit estimate (Kaplan and Meier, J. Am. Stat. Assoc. 53, 1958) of spells, from age 0 on."""
    known = list(spells)
    lengths = np.array([spell.length for spell in known], np.int64)
    ended = np.array([spell.ended for spell in known], np.bool_)
    ages, share, at_risk, lost, left = [], [], [], [], 1.0
    count = int(lengths.max(initial=-1)) + 1
    risks = np.bincount(lengths, minlength=count)[::-1].cumsum()[::-1]
    losses = np.bincount(lengths[ended], minlength=count)
    for age in range(count):
        risk, gone = int(risks[age]), int(losses[age])
        left *= 1 - gone / risk
        ages.append(age)
        share.append(left)
        at_risk.append(risk)
        lost.append(gone)
    return Survival(tuple(ages), tuple(share), tuple(at_risk), tuple(lost))


def nearest_later(
    keys: Mapping[str, npt.NDArray[np.floating]], taught: Mapping[str, int], only: Container[str] | None = None
) -> dict[str, float]:
    """By fact the largest cosine of its key with one of a fact that was taught later; facts without any are left out.

    keys: digest → (d_in,), centred and of length 1. only: the facts that are wanted; None: all. It is the best
    published predictor of being forgotten.
    """
    order = sorted((digest for digest in keys if digest in taught), key=lambda digest: (taught[digest], digest))
    if not order:
        return {}
    matrix = np.stack([keys[digest] for digest in order]).astype(np.float64)
    steps = np.array([taught[digest] for digest in order])
    found: dict[str, float] = {}
    first, *others = np.unique(steps, return_index=True)[1].tolist()
    for begin, end in itertools.pairwise([first, *others]):
        own = np.array([i for i in range(begin, end) if only is None or order[i] in only], np.int64)
        if not len(own):
            continue
        nearest = (matrix[own] @ matrix[end:].T).max(1)
        found.update((order[i], float(value)) for i, value in zip(own, nearest, strict=True))
    return found


def split_by(spells: Sequence[Spell], nearness: Mapping[str, float]) -> tuple[float, list[Spell], list[Spell]]:
    """The median nearness of the facts whose spells are given, the spells of those below it and of the others.

    NaN and nothing where it is known of fewer than two facts.
    """
    known = [spell for spell in spells if spell.fact in nearness]
    if len(known) < 2:
        return math.nan, [], []
    middle = float(np.median([nearness[spell.fact] for spell in known]))
    far = [spell for spell in known if nearness[spell.fact] < middle]
    return middle, far, [spell for spell in known if nearness[spell.fact] >= middle]


def lost_facts(measurements: Sequence[Measurement], live: Iterable[str]) -> list[Lost]:
    """The live facts that were answered when they were asked first and not when they were asked last."""
    held, found = set(live), []
    for (fact, _), asked in histories(measurements).items():
        (_, first), (step, last) = asked[0], asked[-1]
        if fact in held and first.generated and not last.generated:
            found.append(Lost(first, last, step))
    return sorted(found, key=lambda lost: (lost.then.taught, lost.then.prompt))
