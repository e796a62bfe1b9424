"""The ridge solve against float64 NumPy, by its first-order condition, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lifelong_edit.errors import StepRefusedError
from lifelong_edit.numerics.solver import Solution, factorise, solve, woodbury_is_cheaper


def problem(seed: int, n: int, d_in: int, d_out: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random K (n, d_in), D (n, d_out), w (n,) and P (d_in, d_in) of half rank, float64."""
    g = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(n, d, generator=g, dtype=torch.float64) for d in (d_in, d_out))
    text = torch.randn(d_in // 2 + 1, d_in, generator=g, dtype=torch.float64)
    return keys, values, 0.2 + 3 * torch.rand(n, generator=g, dtype=torch.float64), text.T @ text


def judge(keys: Tensor, values: Tensor, weights: Tensor, preserved: Tensor, ridge: float) -> np.ndarray:
    """The normal equations in float64 NumPy."""
    k, d, w = keys.double().numpy(), values.double().numpy(), weights.double().numpy()
    system = k.T @ np.diag(w) @ k + preserved.double().numpy() + ridge * np.eye(k.shape[1])
    answer: np.ndarray = np.linalg.solve(system, k.T @ np.diag(w) @ d)
    return answer


def error(found: Tensor, expected: np.ndarray) -> float:
    """Relative error in the Frobenius norm."""
    return float(np.linalg.norm(found.numpy() - expected) / np.linalg.norm(expected))


shapes = st.tuples(st.integers(1, 30), st.integers(1, 24), st.integers(1, 9))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), shape=shapes, ridge=st.floats(0.01, 100))
def test_equals_the_normal_equations(seed: int, shape: tuple[int, int, int], ridge: float) -> None:
    keys, values, weights, preserved = problem(seed, *shape)
    found = solve(keys, values, weights, preserved, ridge)
    # Condition numbers here stay below 1e5: 1e5 · eps · d leaves five digits to spare.
    assert error(found.shift, judge(keys, values, weights, preserved, ridge)) < 1e-9
    assert found.shift.dtype == torch.float64


@pytest.mark.parametrize("broken", ["ridge", "weights", "preserved"])
def test_the_judge_notices_a_wrong_ridge_an_unweighted_row_and_a_lost_gram(broken: str) -> None:
    keys, values, weights, preserved = problem(1, 20, 12, 4)
    expected = judge(keys, values, weights, preserved, 0.5)
    if broken == "weights":
        weights = weights.clone()
        weights[3] = 1.0
    if broken == "preserved":
        preserved = torch.zeros_like(preserved)
    assert error(solve(keys, values, weights, preserved, 0.6 if broken == "ridge" else 0.5).shift, expected) > 1e-4


def objective_slope(shift: Tensor, ridge: float) -> tuple[float, float]:
    """Norm of the objective's gradient at `shift` by autograd, and at zero for comparison."""
    keys, values, weights, preserved = problem(2, 15, 10, 3)

    def slope(at: Tensor) -> float:
        at = at.clone().requires_grad_()
        misfit = (weights[:, None] * (keys @ at - values).square()).sum()
        held = (at * (preserved @ at)).sum() + ridge * at.square().sum()
        return float(torch.autograd.grad(misfit + held, at)[0].norm())

    return slope(shift), slope(torch.zeros_like(shift))


def test_the_shift_is_where_the_objective_is_flat() -> None:
    """Σ w‖kS − d‖² + tr(SᵀPS) + λ‖S‖² has gradient zero at S: judged by autograd, not by the equations."""
    solution = solve(*problem(2, 15, 10, 3), 0.7)
    at, start = objective_slope(solution.shift, 0.7)
    assert at < 1e-12 * start
    assert objective_slope(solve(*problem(2, 15, 10, 3), 0.8).shift, 0.7)[0] > 1e-4 * start


def conditioned(exponent: float, n: int = 8, d_in: int = 40) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A problem whose P has eigenvalues from 1 down to 10^-exponent, and few keys: Woodbury's case."""
    keys, values, weights, _ = problem(3, n, d_in, 5)
    basis = torch.linalg.qr(torch.randn(d_in, d_in, generator=torch.Generator().manual_seed(9), dtype=torch.float64))[0]
    spectrum = torch.logspace(0, -exponent, d_in, dtype=torch.float64)
    preserved = basis @ torch.diag(spectrum) @ basis.T
    return keys / keys.norm(dim=1, keepdim=True), values, weights, (preserved + preserved.T) / 2


def both(exponent: float) -> tuple[Solution, Solution, tuple[Tensor, Tensor, Tensor, Tensor]]:
    given_ = conditioned(exponent)
    kept = factorise(given_[3], 0.0)
    assert woodbury_is_cheaper(*given_[0].shape)
    assert solve(*given_, 0.0, kept).kept is kept
    return solve(*given_, 0.0), solve(*given_, 0.0, kept), given_


@pytest.mark.parametrize("exponent", [0, 2, 4, 6])
def test_woodbury_equals_primal_up_to_a_condition_number_of_a_million(exponent: int) -> None:
    primal, woodbury, _ = both(exponent)
    assert error(woodbury.shift, primal.shift.numpy()) < 1e-10
    assert error(woodbury.influence(), primal.influence().numpy()) < 1e-9


@pytest.mark.parametrize("exponent", [8, 10, 12])
def test_beyond_that_each_solves_a_problem_next_to_the_one_given(exponent: int) -> None:
    """Normwise backward error ‖AS − R‖ / (‖A‖‖S‖ + ‖R‖): small whatever the conditioning."""
    primal, woodbury, (keys, values, weights, preserved) = both(exponent)
    system = (keys * weights[:, None]).T @ keys + preserved
    right = keys.T @ (weights[:, None] * values)

    def backward(shift: Tensor) -> float:
        scale = torch.linalg.matrix_norm(system, 2) * shift.norm() + right.norm()
        return float((system @ shift - right).norm() / scale)

    # d·eps is 9e-15 for the primal; the kept factor's rounding enters Woodbury's answer twice more.
    assert backward(primal.shift) < 1e-14
    assert backward(woodbury.shift) < 1e-10
    assert backward(woodbury.shift * 1.001) > 1e-6


def test_a_kept_factor_of_another_ridge_is_noticed() -> None:
    given_ = conditioned(4)
    wrong = solve(*given_, 0.1, factorise(given_[3], 0.11))
    assert error(wrong.shift, judge(*given_, 0.1)) > 1e-4


def test_many_rows_take_the_primal_way_even_with_a_kept_factor() -> None:
    keys, values, weights, preserved = problem(4, 60, 12, 3)
    solution = solve(keys, values, weights, preserved, 1.0, factorise(preserved, 1.0))
    assert solution.kept is None
    assert error(solution.shift, judge(keys, values, weights, preserved, 1.0)) < 1e-10


@pytest.mark.parametrize("woodbury", [False, True])
def test_influence_times_values_is_the_shift(woodbury: bool) -> None:
    given_ = conditioned(3)
    solution = solve(*given_, 0.3, factorise(given_[3], 0.3) if woodbury else None)
    assert solution.influence().shape == (40, 8)
    assert error(solution.influence() @ given_[1], solution.shift.numpy()) < 1e-11


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", [0, 1, 2, 3])
@pytest.mark.parametrize("woodbury", [False, True])
def test_what_is_no_number_is_refused(bad: float, part: int, woodbury: bool) -> None:
    given_ = list(conditioned(2))
    kept = factorise(given_[3], 1.0) if woodbury else None
    given_[part] = given_[part].clone()
    given_[part].view(-1)[2] = bad
    with pytest.raises(StepRefusedError):
        solve(given_[0], given_[1], given_[2], given_[3], 1.0, kept)


@pytest.mark.parametrize("ridge", [float("nan"), float("inf"), -2000.0])
def test_a_ridge_that_is_no_ridge_is_refused(ridge: float) -> None:
    with pytest.raises(StepRefusedError, match="singular"):
        solve(*problem(5, 9, 6, 2), ridge)


@pytest.mark.parametrize("kind", ["fewer rows than columns", "a column repeated", "a dead coordinate"])
def test_singular_systems_are_refused_whatever_rounding_leaves(kind: str) -> None:
    """Over 50 seeds: without the check of the factor about half of them pass Cholesky with a tiny positive pivot."""
    for seed in range(50):
        keys, values, weights, preserved = problem(seed, 5 if kind.startswith("fewer") else 12, 6, 3)
        if kind == "a column repeated":
            keys[:, 5] = keys[:, 0] - 2 * keys[:, 2]
        if kind == "a dead coordinate":
            keys[:, 4] = 0
        nothing = torch.zeros_like(preserved)
        with pytest.raises(StepRefusedError, match="singular"):
            solve(keys, values, weights, nothing, 0.0)
        # The same with a ridge is a problem like any other, also where coordinates differ widely in scale.
        assert bool(torch.isfinite(solve(keys, values, weights, nothing, 1e-6).shift).all())
        wide = keys * torch.logspace(-4, 4, 6, dtype=torch.float64)
        assert bool(torch.isfinite(solve(wide, values, weights, torch.eye(6, dtype=torch.float64), 0.0).shift).all())


def test_cholesky_alone_would_have_passed_singular_systems() -> None:
    """The reason for the check above, shown: positive pivots prove nothing."""
    passed = 0
    for seed in range(50):
        keys = problem(seed, 12, 6, 3)[0]
        keys[:, 5] = keys[:, 0] - 2 * keys[:, 2]
        passed += int(torch.linalg.cholesky_ex(keys.T @ keys)[1]) == 0
    assert passed > 5
