"""Which facts are asked after a step."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifelong_edit.policies import choose_sample, sample_size

COHORTS = st.dictionaries(st.integers(1, 50), st.integers(0, 30), max_size=12).map(
    lambda sizes: {step: [f"{step}-{n}" for n in range(size)] for step, size in sizes.items()}
)


@given(COHORTS, st.integers(0, 60), st.integers(0, 3), st.integers(1, 60))
def test_never_more_than_asked_for_and_nothing_idle(
    cohorts: dict[int, list[str]], size: int, seed: int, step: int
) -> None:
    """As many as there are, up to the size: what a small batch leaves is given to the others."""
    chosen = choose_sample(cohorts, size, seed, step)
    total, there = sum(map(len, chosen.values())), sum(map(len, cohorts.values()))
    assert total <= size
    for cohort, facts in chosen.items():
        assert set(facts) <= set(cohorts[cohort]) and len(set(facts)) == len(facts) > 0
    older = {cohort: facts for cohort, facts in cohorts.items() if facts and cohort != max(chosen, default=0)}
    if total < min(size, there):  # then all of the older batches are asked, and the newest one has its quarter
        assert all(len(chosen[cohort]) == len(facts) for cohort, facts in older.items())
    assert chosen == choose_sample(dict(reversed(cohorts.items())), size, seed, step)


def test_batches_are_asked_alike() -> None:
    """A quarter for the newest; the others differ by one at most, where they are large enough."""
    cohorts = {step: [f"{step}-{n}" for n in range(50)] for step in range(1, 21)}
    counts = {step: len(facts) for step, facts in choose_sample(cohorts, 100, 0, 20).items()}
    assert counts.pop(20) == 25
    assert sum(counts.values()) == 75 and max(counts.values()) - min(counts.values()) <= 1


def test_the_same_facts_are_asked_again() -> None:
    """A sample is a beginning of one fixed order: what is asked later of a batch was asked before."""
    cohorts = {1: [f"1-{n}" for n in range(50)]}
    asked = []
    for step in range(1, 12):
        cohorts[step] = [f"{step}-{n}" for n in range(50)]
        asked.append(choose_sample(cohorts, 100, 3, step)[1])
    assert all(later == earlier[: len(later)] for earlier, later in pairwise(asked))
    assert choose_sample(cohorts, 100, 4, 11)[1] != asked[-1]


def test_more_batches_than_questions_are_asked_in_turn() -> None:
    cohorts = {step: [str(step)] for step in range(1, 201)}
    seen: set[int] = set()
    for step in range(200, 240):
        chosen = choose_sample(cohorts, 40, 0, step)
        assert len(chosen) == 40 and 200 in chosen
        seen |= chosen.keys()
    assert len(seen) > 190


@pytest.mark.parametrize(("batch", "size"), [(1, 2), (16, 32), (64, 128), (500, 128)])
def test_the_cost_is_a_share_of_the_batch(batch: int, size: int) -> None:
    assert sample_size(batch) == size
