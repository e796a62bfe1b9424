"""The forgetting matrix [edit step × evaluation step], and the figures of forgetting that follow from it.

All of it is made from what was asked along a stream, of a sample of facts: every share comes with how many questions
it is over. Steps stand in the order of the line that was edited; a reconsolidation adds a column and no row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lifelong_edit.stores import Measure, Measurement, StepRecord

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

_QUANTILE = 1.959963984540054
"""Of the normal distribution, for 95 %."""


@dataclass(frozen=True)
class Matrix:
    """How many questions about each batch were right at each state. right, asked, live: (batches, states)."""

    taught: tuple[int, ...]
    """Rows: the steps that taught something which is still asked about, ascending."""
    measured: tuple[int, ...]
    """Columns: the steps at whose states was asked, ascending."""
    right: Counts
    asked: Counts
    live: Counts
    """Facts of the batch that were in force there, asked or not."""

    @property
    def share(self) -> Floats:
        """Shares of right answers, NaN where nothing was asked."""
        return self.right / np.where(self.asked > 0, self.asked, np.nan)

    def ages(self) -> Counts:
        """(batches, states): how many batches were edited since, 0 right after its own; −1 before it."""
        batches = np.array(self.taught)
        latest = np.searchsorted(batches, np.array(self.measured), side="right") - 1
        found: Counts = np.maximum(latest[None, :] - np.arange(len(batches))[:, None], -1)
        return found

    def last(self) -> Floats:
        """(batches,): the share of each batch when it was asked last; NaN where it never was."""
        return np.array([row[~np.isnan(row)][-1] if not np.isnan(row).all() else np.nan for row in self.share])

    def first(self) -> Floats:
        """(batches,): the share of each batch when it was asked first, which is right after its edit."""
        return np.array([row[~np.isnan(row)][0] if not np.isnan(row).all() else np.nan for row in self.share])


@dataclass(frozen=True)
class Rate:
    """A share with the ends of its 95 % interval; NaN where nothing was asked."""

    value: float
    low: float
    high: float
    asked: int


def matrix_of(measurements: Sequence[Measurement], measure: Measure, *, forced: bool = False) -> Matrix:
    """The matrix of a measure along one line. forced: teacher-forced, else by generation."""
    columns = sorted(measurements, key=lambda found: found.step)
    rows = sorted({step for found in columns for step in found.live})
    place = {step: i for i, step in enumerate(rows)}
    right, asked, live = (np.zeros((len(rows), len(columns)), np.int64) for _ in range(3))
    for j, found in enumerate(columns):
        for step, count in found.live.items():
            live[place[step], j] = count
        for outcome in found.outcomes:
            if outcome.measure == measure and outcome.taught in place:
                right[place[outcome.taught], j] += outcome.teacher_forced if forced else outcome.generated
                asked[place[outcome.taught], j] += 1
    return Matrix(tuple(rows), tuple(found.step for found in columns), right, asked, live)


def wilson(right: float, asked: float) -> tuple[float, float]:
    """The ends of the 95 % score interval of a share (Wilson, J. Am. Stat. Assoc. 22, 1927); NaN without questions.

    Unlike the textbook interval it has a width where all answers are alike. Numbers need not be whole: an effective
    sample size will do.
    """
    if not asked:
        return math.nan, math.nan
    z = _QUANTILE**2 / asked
    share = right / asked
    middle = (share + z / 2) / (1 + z)
    half = math.sqrt(share * (1 - share) * z + z * z / 4) / (1 + z)
    return max(0.0, middle - half), min(1.0, middle + half)


def rate(right: int, asked: int) -> Rate:
    """A share with Wilson's interval."""
    return Rate(right / asked if asked else math.nan, *wilson(right, asked), asked)


def retention(matrix: Matrix, *, earlier: bool = True) -> list[Rate]:
    """By state: the share of the live facts that is still answered, of batches before the newest one (`earlier`).

    Batches are weighted by how many live facts they have, not by how many were asked: the sample is stratified. The
    interval is Wilson's at Kish's effective sample size, 1 / Σ (wᵢ²/nᵢ) (Survey Sampling, 1965).
    """
    found = []
    for j in range(len(matrix.measured)):
        use = matrix.asked[:, j] > 0
        if earlier:
            newest = max((i for i in range(len(matrix.taught)) if matrix.live[i, j]), default=-1)
            use = use & (np.arange(len(use)) != newest)
        found.append(_weighted(matrix.right[use, j], matrix.asked[use, j], matrix.live[use, j]))
    return found


def _weighted(right: Counts, asked: Counts, live: Counts) -> Rate:
    if not len(asked):
        return Rate(math.nan, math.nan, math.nan, 0)
    weights = live / live.sum()
    value = float((weights * right / asked).sum())
    effective = 1 / float((weights**2 / asked).sum())
    return Rate(value, *wilson(value * effective, effective), int(asked.sum()))


def by_age(matrix: Matrix, columns: Sequence[int] | None = None) -> list[Rate]:
    """The forgetting curve: share right by how many batches came since, pooled over batches.

    columns: steps of the states that count, by default all; where batches are solved for again in between, those
    right after an edit are what shows forgetting.
    """
    chosen = [j for j, step in enumerate(matrix.measured) if columns is None or step in set(columns)]
    ages, right, asked = (values[:, chosen] for values in (matrix.ages(), matrix.right, matrix.asked))
    return [
        rate(int(right[ages == age].sum()), int(asked[ages == age].sum()))
        for age in range(int(ages.max(initial=-1)) + 1)
    ]


def backward_transfer(matrix: Matrix) -> float:
    """Mean over all batches but the last of the share at the end minus that right after the edit; NaN without any.

    BWT of GEM (Lopez-Paz and Ranzato, NeurIPS 2017, section 2): negative where later edits cost earlier ones.
    """
    changes = (matrix.last() - matrix.first())[:-1]
    return float(np.nanmean(changes)) if (~np.isnan(changes)).any() else math.nan


def forgetting(matrix: Matrix) -> float:
    """Mean over all batches but the last of the greatest share before the end minus that at the end; NaN without any.

    F of Chaudhry et al., "Riemannian Walk for Incremental Learning", ECCV 2018, equation 3.
    """
    changes = []
    for row in matrix.share[:-1]:
        known = row[~np.isnan(row)]
        if len(known) > 1:
            changes.append(known[:-1].max() - known[-1])
    return float(np.mean(changes)) if changes else math.nan


@dataclass(frozen=True)
class HalfLife:
    """After how many batches half of what was known at first is left. value: inf where nothing fades."""

    value: float
    seen: bool
    """Whether the curve came down to half; else it is extrapolated."""


def half_life(curve: Sequence[Rate]) -> HalfLife:
    """The half-life of a forgetting curve.

    Where the curve falls to half of its beginning that age, between two ages by a straight line; else the exponential
    that fits the logarithms of the shares best, each weighted by its questions. NaN where fewer than two ages were
    asked.
    """
    known = [(age, point) for age, point in enumerate(curve) if point.asked and point.value > 0]
    if not curve or not curve[0].asked or curve[0].value <= 0:
        return HalfLife(math.nan, False)
    half, before = curve[0].value / 2, (0, curve[0].value)
    for age, point in enumerate(curve):
        if point.asked and point.value <= half:
            slope = (point.value - before[1]) / (age - before[0])
            return HalfLife(before[0] + (half - before[1]) / slope, True)
        before = (age, point.value) if point.asked else before
    if len(known) < 2:
        return HalfLife(math.nan, False)
    ages = np.array([age for age, _ in known], np.float64)
    logs = np.array([math.log(point.value) for _, point in known])
    weights = np.array([point.asked for _, point in known], np.float64)
    centred = ages - np.average(ages, weights=weights)
    slope = float((weights * centred * logs).sum() / (weights * centred**2).sum())
    return HalfLife(-math.log(2) / slope if slope < 0 else math.inf, False)


def perplexity_after(record: StepRecord) -> float | None:
    """Perplexity on the store's sample at the state that a step made, by what it logged."""
    if record.gate is not None:
        return record.gate.perplexity
    after = None if record.guard is None or record.kind == "refused" else record.guard.after
    return None if after is None else after.perplexity


def collapse(records: Sequence[StepRecord], factor: float) -> int | None:
    """The first step of a line after which perplexity is beyond `factor` times the base model's; None where none is.

    Perplexity tells a collapse early: Yang et al., "The Butterfly Effect of Model Editing", arXiv 2402.09656.
    """
    base = records[0].provenance.get("perplexity") if records else None
    if not base:
        return None
    for record in records:
        found = perplexity_after(record)
        if found is not None and not found <= factor * base:  # NaN is beyond every bound
            return record.step
    return None
