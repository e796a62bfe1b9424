"""Which facts are asked again after a step: so many at most, however long the stream has become."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from lifelong_edit.stores.digests import digest_bytes

LARGEST = 128
"""Facts, unless somebody asks for more."""
NEWEST = 0.25
"""Share of a sample that the newest batch has, where there are others."""


def sample_size(batch_size: int) -> int:
    """How many facts are asked after a batch: twice as many as it has, so that asking costs a share of editing."""
    return min(2 * batch_size, LARGEST)


def choose_sample(cohorts: Mapping[int, Sequence[str]], size: int, seed: int, step: int) -> dict[int, list[str]]:
    """At most `size` facts to ask at a state: a quarter of the newest batch, as many as can be alike of every other.

    cohorts: by the step that taught them, the digests of the live facts. Within a batch the order in which facts are
    chosen is fixed by the seed, so that the same ones are asked again and again, and a change is one of the model.
    Where there are more batches than questions, which of them are asked is drawn anew for each `step`.
    """
    left = {cohort: ordered(facts, seed) for cohort, facts in cohorts.items() if facts}
    if not left or size <= 0:
        return {}
    newest = max(left)
    first = size if len(left) == 1 else max(1, round(NEWEST * size))
    chosen = {newest: left.pop(newest)[:first]}
    chosen |= _spread(left, size - len(chosen[newest]), f"{seed}/{step}")
    return dict(sorted(chosen.items()))


def _spread(cohorts: Mapping[int, Sequence[str]], size: int, draw: str) -> dict[int, list[str]]:
    """So many facts over batches, small ones first: what they leave goes to the others."""
    chosen: dict[int, list[str]] = {}
    order = sorted(cohorts, key=lambda cohort: (len(cohorts[cohort]), digest_bytes(f"{draw}/{cohort}".encode())))
    if len(order) > size:
        order = sorted(order, key=lambda cohort: digest_bytes(f"{draw}/{cohort}".encode()))[:size]
    for number, cohort in enumerate(order):
        share = size // (len(order) - number)
        chosen[cohort] = list(cohorts[cohort][:share])
        size -= len(chosen[cohort])
    return chosen


def ordered(facts: Iterable[str], seed: int) -> list[str]:
    """Facts, by digest, in the order in which they are chosen: drawn by a seed, whatever the order they come in."""
    return sorted(facts, key=lambda fact: digest_bytes(f"sample/{seed}/{fact}".encode()))
