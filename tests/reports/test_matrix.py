"""The forgetting matrix and what follows from it, by hand and by a second way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifelong_edit.eval.reports.matrix import (
    Rate,
    backward_transfer,
    by_age,
    collapse,
    forgetting,
    half_life,
    matrix_of,
    rate,
    retention,
    wilson,
)
from lifelong_edit.stores import Edit, Gate, Guard, Init, Measurement, Outcome, Standing, StepRecord
from lifelong_edit.stores.records import KINDS

Plan = dict[int, dict[int, Sequence[int]]]
"""By measured step: by the step that taught, 1 and 0 for each fact asked."""


def measured(plan: Plan, live: dict[int, int] | None = None) -> list[Measurement]:
    """Measurements with these outcomes; batches have as many live facts as `live` says, by default as were asked."""
    found = []
    for step, rows in plan.items():
        outcomes = [
            Outcome(f"{taught}-{n}", taught, "efficacy", f"prompt {n}", bool(right), True, "answer")
            for taught, answers in rows.items()
            for n, right in enumerate(answers)
        ]
        counts = {taught: (live or {}).get(taught, len(answers)) for taught, answers in rows.items()}
        found.append(
            Measurement(step=step, weights_digest="", time="", sample=9, seed=0, live=counts, outcomes=outcomes)
        )
    return found


# Three batches; a reconsolidation (step 4) brings back what the second edit cost the first.
THREE: Plan = {
    1: {1: [1, 1, 1, 1]},
    2: {1: [1, 1, 0, 0], 2: [1, 1]},
    3: {1: [1, 0, 0, 0], 2: [1, 0], 3: [1, 1]},
    4: {1: [1, 1, 1, 0], 2: [1, 1], 3: [1, 1]},
}


def test_by_hand() -> None:
    matrix = matrix_of(measured(THREE)[::-1], "efficacy")
    assert (matrix.taught, matrix.measured) == ((1, 2, 3), (1, 2, 3, 4))
    nan = math.nan
    wanted = [[1, 0.5, 0.25, 0.75], [nan, 1, 0.5, 1], [nan, nan, 1, 1]]
    np.testing.assert_array_equal(matrix.share, wanted)
    np.testing.assert_array_equal(matrix.ages(), [[0, 1, 2, 2], [-1, 0, 1, 1], [-1, -1, 0, 0]])
    assert [point.value for point in retention(matrix)[1:]] == pytest.approx([0.5, 2 / 6, 5 / 6])
    assert math.isnan(retention(matrix)[0].value) and retention(matrix)[0].asked == 0
    assert [point.value for point in retention(matrix, earlier=False)] == [1, 4 / 6, 4 / 8, 7 / 8]
    assert [(point.value, point.asked) for point in by_age(matrix, [1, 2, 3])] == [(1, 8), (0.5, 6), (0.25, 4)]
    assert [point.asked for point in by_age(matrix)] == [10, 8, 8]
    assert backward_transfer(matrix) == pytest.approx((-0.25 + 0) / 2)
    assert forgetting(matrix) == pytest.approx((0.25 + 0) / 2)


def test_teacher_forced_is_apart() -> None:
    matrix = matrix_of(measured(THREE), "efficacy", forced=True)
    assert np.nanmin(matrix.share) == 1
    assert matrix_of(measured(THREE), "locality").asked.sum() == 0


def test_batches_count_by_their_live_facts() -> None:
    """1 of 2 asked of 100 live, 2 of 2 of 300; the newest batch does not count."""
    matrix = matrix_of(measured({3: {1: [1, 0], 2: [1, 1], 3: [0, 0]}}, {1: 100, 2: 300, 3: 50}), "efficacy")
    (found,) = retention(matrix)
    assert found.value == pytest.approx(0.25 * 0.5 + 0.75 * 1) and found.asked == 4
    effective = 1 / (0.25**2 / 2 + 0.75**2 / 2)
    assert (found.low, found.high) == pytest.approx(wilson(found.value * effective, effective))


@given(st.integers(0, 40), st.integers(1, 40))
def test_wilson_solves_its_equation(right: int, more: int) -> None:
    """Its ends are the shares p at which the observed one is 1.96 standard errors away."""
    asked = right + more - 1 or 1
    right = min(right, asked)
    for end in wilson(right, asked):
        assert 0 <= end <= 1
        assert (right / asked - end) ** 2 == pytest.approx(1.959963984540054**2 * end * (1 - end) / asked, abs=1e-9)


def test_wilson_of_nothing() -> None:
    assert all(map(math.isnan, wilson(0, 0))) and math.isnan(rate(0, 0).value)


@given(
    st.integers(1, 5).flatmap(
        lambda batches: st.lists(
            st.lists(st.lists(st.booleans(), max_size=4), min_size=batches, max_size=batches),
            min_size=batches,
            max_size=batches,
        )
    )
)
def test_a_second_way(answers: list[list[list[bool]]]) -> None:
    """Loops over outcomes, without arrays."""
    size = len(answers)
    plan: Plan = {j + 1: {i + 1: [int(x) for x in answers[i][j]] for i in range(j + 1)} for j in range(size)}
    matrix = matrix_of(measured(plan), "efficacy")
    cells = {(i, j): plan[j + 1][i + 1] for j in range(size) for i in range(j + 1) if plan[j + 1][i + 1]}
    for (i, j), asked in cells.items():
        assert matrix.share[i, j] == sum(asked) / len(asked)
    assert int((~np.isnan(matrix.share)).sum()) == len(cells)
    curve = by_age(matrix)
    for age, point in enumerate(curve):
        pooled = [x for (i, j), asked in cells.items() if j - i == age for x in asked]
        assert point.asked == len(pooled) and (not pooled or point.value == pytest.approx(sum(pooled) / len(pooled)))
    rows = [[sum(cells[i, j]) / len(cells[i, j]) for j in range(size) if (i, j) in cells] for i in range(size - 1)]
    changes = [row[-1] - row[0] for row in rows if row]
    drops = [max(row[:-1]) - row[-1] for row in rows if len(row) > 1]
    for found, wanted in ((backward_transfer(matrix), changes), (forgetting(matrix), drops)):
        assert math.isnan(found) if not wanted else found == pytest.approx(sum(wanted) / len(wanted))


def curve(*shares: float) -> list[Rate]:
    return [rate(round(share * 1000), 1000) for share in shares]


def test_half_life() -> None:
    seen = half_life(curve(0.8, 0.6, 0.3))
    assert seen.seen and seen.value == pytest.approx(1 + 0.2 / 0.3)
    fitted = half_life(curve(1, 0.9, 0.81, 0.729))
    assert not fitted.seen and fitted.value == pytest.approx(math.log(2) / -math.log(0.9))
    assert half_life(curve(0.9, 0.9, 0.95)).value == math.inf
    assert math.isnan(half_life(curve(0.9)).value) and math.isnan(half_life([]).value)
    gap = [rate(9, 10), rate(0, 0), rate(3, 10)]
    assert half_life(gap).value == pytest.approx(2 * 0.45 / 0.6)


def step(number: int, perplexity: float | None, kind: str = "edit") -> StepRecord:
    made: dict[str, Any] = {
        "step": number, "parent": number - 1, "previous": "", "time": "", "weights_digest": "", "live_digest": "",
    }  # fmt: skip
    if not number:
        return Init(provenance={"perplexity": 10.0}, **made)
    if kind == "edit":
        return Edit(gate=Gate(perplexity=perplexity), **made)
    return KINDS[kind](guard=Guard(after=Standing(perplexity=perplexity)), **made)


def test_the_alarm_goes_off_at_the_first_step_beyond() -> None:
    records = [step(0, None), step(1, 10.5), step(2, 11.5), step(3, 10.0), step(4, 20.0)]
    assert collapse(records, 1.1) == 2
    assert collapse(records, 1.5) == 4
    assert collapse(records[:2], 1.1) is None and collapse([], 1.1) is None
    assert collapse([*records[:2], step(2, math.nan)], 1.1) == 2
    assert collapse([*records[:2], step(2, 30.0, "refused")], 1.1) is None  # its state is that before
    assert collapse([*records[:2], step(2, 30.0, "reconsolidate")], 1.1) == 2
