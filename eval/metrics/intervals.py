"""How sure a mean over questions is: percentile intervals by bootstrap over facts.

The questions of one fact come out alike, so it is facts that are drawn with replacement, each with all its questions
(the cluster bootstrap: Field and Welsh, "Bootstrapping clustered data", J. R. Stat. Soc. B 69, 2007; percentile
intervals: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13). Drawing questions one by one
would make intervals too narrow. Where all answers are alike an interval has no width, which says nothing about what
was not asked: of n facts without a failure, up to 3/n may well fail.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
LEVEL = 0.95
# So many facts are drawn at once, resamples times facts: what bounds the memory.
_DRAWN_AT_ONCE = 1 << 20

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean with the ends of its interval; NaN where there was nothing to ask."""

    value: float
    low: float
    high: float
    facts: int
    """How many facts the mean is over."""


def per_fact(values: Floats, owners: Sequence[Hashable]) -> tuple[Floats, Floats]:
    """Sums and counts by fact, in the order in which facts come first.

    values: (n, k), k figures of each question. owners: n, the fact that each belongs to. Returns (f, k) and (f,).
    """
    places = {owner: place for place, owner in enumerate(dict.fromkeys(owners))}
    where = np.array([places[owner] for owner in owners], dtype=np.intp)
    sums = np.zeros((len(places), values.shape[1]))
    np.add.at(sums, where, values)
    return sums, np.bincount(where, minlength=len(places)).astype(np.float64)


def bootstrap(
    sums: Floats, counts: Floats, *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> tuple[Floats, Floats]:
    """The ends of the percentile interval of sum(sums) / sum(counts), (k,) each; NaN without any fact.

    sums: (f, k), counts: (f,) positive, of each fact. Each resample draws f facts with replacement.
    """
    facts = len(counts)
    if facts == 0:
        return np.full(sums.shape[1], np.nan), np.full(sums.shape[1], np.nan)
    generator = np.random.default_rng(seed)
    means = []
    for start in range(0, resamples, step := max(1, _DRAWN_AT_ONCE // facts)):
        drawn = generator.integers(facts, size=(min(step, resamples - start), facts))
        means.append(sums[drawn].sum(1) / counts[drawn].sum(1)[:, None])
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def estimates(values: Floats, owners: Sequence[Hashable], seed: int = 0) -> list[Estimate]:
    """The mean over questions of each of k figures, with its interval over facts. values: (n, k)."""
    sums, counts = per_fact(values, owners)
    low, high = bootstrap(sums, counts, seed=seed)
    means = values.mean(0) if len(values) else np.full(values.shape[1], np.nan)
    return [Estimate(float(m), float(a), float(b), len(counts)) for m, a, b in zip(means, low, high, strict=True)]
