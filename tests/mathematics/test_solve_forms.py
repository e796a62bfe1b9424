"""The forms of one solve, primal, dual and by a kept factor: each against float64 NumPy, and where each is taken."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lifelong_edit.errors import StepRefusedError
from lifelong_edit.numerics import solver
from lifelong_edit.numerics.solver import Factor, Solution, dual_is_worth_it, factorise, solve, solve_backward

FORMS = ("primal", "dual", "kept factor")
Problem = tuple[Tensor, Tensor, Tensor]


@pytest.fixture
def small_duals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small systems take the dual form too, wherever it is cheaper at all."""
    monkeypatch.setattr(solver, "WORTH_A_DUAL", 0.0)


def problem(seed: int, n: int, d_in: int, d_out: int) -> Problem:
    """Random K (n, d_in), D (n, d_out) and w (n,) with every third weight zero, float64."""
    g = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(n, d, generator=g, dtype=torch.float64) for d in (d_in, d_out))
    weights = 0.2 + 3 * torch.rand(n, generator=g, dtype=torch.float64)
    weights[::3] = 0
    return keys, values, weights


def conditioned(exponent: float, n: int = 9, d_in: int = 40) -> tuple[Problem, float]:
    """Keys whose singular values fall from 1 to 10^-exponent/2, and the λ that makes cond(A) 10^exponent."""
    keys, values, weights = problem(3, n, d_in, 5)
    left, _, right = torch.linalg.svd(keys, full_matrices=False)
    keys = left @ torch.diag(torch.logspace(0, -exponent / 2, n, dtype=torch.float64)) @ right
    return (keys, values, torch.ones_like(weights)), 10.0**-exponent


def by_form(form: str, given_: Problem, ridge: float) -> Solution:
    """The solve with P = 0 in one of its forms; Woodbury's identity on a factor of λI."""
    nothing = torch.zeros(given_[0].shape[1], given_[0].shape[1], dtype=torch.float64)
    kept = factorise(nothing, ridge) if form == "kept factor" else None
    found = solve(*given_, None if form == "dual" else nothing, ridge, kept)
    assert (found.dual is not None, found.kept is not None) == (form == "dual", form == "kept factor")
    return found


def system_of(given_: Problem, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """A and Kᵀdiag(w)D in NumPy."""
    keys, values, weights = (part.numpy() for part in given_)
    return keys.T @ np.diag(weights) @ keys + ridge * np.eye(keys.shape[1]), keys.T @ np.diag(weights) @ values


def judge(given_: Problem, ridge: float) -> np.ndarray:
    """The normal equations by SciPy's solver for symmetric positive definite systems."""
    system, right = system_of(given_, ridge)
    answer: np.ndarray = scipy.linalg.solve(system, right, assume_a="pos")
    return answer


def error(found: Tensor, expected: np.ndarray) -> float:
    """Relative error in the Frobenius norm."""
    return float(np.linalg.norm(found.numpy() - expected) / np.linalg.norm(expected))


@pytest.mark.usefixtures("small_duals")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("exponent", [0, 2, 4, 6])
def test_every_form_is_the_normal_equations_up_to_a_condition_number_of_a_million(form: str, exponent: int) -> None:
    given_, ridge = conditioned(exponent)
    solution = by_form(form, given_, ridge)
    assert error(solution.shift, judge(given_, ridge)) < 1e-10
    keys, weights = given_[0].numpy(), given_[2].numpy()
    influence = scipy.linalg.solve(system_of(given_, ridge)[0], keys.T * weights, assume_a="pos")
    assert error(solution.influence(), influence) < 1e-10
    assert error(solution.influence() @ given_[1], solution.shift.numpy()) < 1e-10


@pytest.mark.usefixtures("small_duals")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("exponent", [8, 10, 12])
def test_beyond_that_every_form_solves_a_problem_next_to_the_one_given(form: str, exponent: int) -> None:
    """Normwise backward error ‖AS − R‖ / (‖A‖‖S‖ + ‖R‖)."""
    given_, ridge = conditioned(exponent)
    system, right = system_of(given_, ridge)

    def backward(shift: np.ndarray) -> float:
        scale = np.linalg.norm(system, 2) * np.linalg.norm(shift) + np.linalg.norm(right)
        return float(np.linalg.norm(system @ shift - right) / scale)

    found = by_form(form, given_, ridge).shift.numpy()
    # Of the other two what was rounded is multiplied by U once more: up to √cond(A) of it is seen against S.
    assert backward(found) < (1e-14 if form == "primal" else 1e-15 * 10 ** (exponent / 2))
    assert backward(found + 1e-3 * np.linalg.norm(found) * right / np.linalg.norm(right)) > 1e-6


@pytest.mark.usefixtures("small_duals")
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(0, 12), d_in=st.integers(13, 30), ridge=st.floats(0.01, 100))
def test_the_dual_with_weights_of_zero_and_its_inverse(seed: int, n: int, d_in: int, ridge: float) -> None:
    given_ = problem(seed, n, d_in, 4)
    solution = solve(*given_, None, ridge)
    assert solution.dual is not None
    assert solution.shift.shape == (d_in, 4)
    weighted = given_[0].numpy().T * given_[2].numpy()
    influence = np.linalg.solve(system_of(given_, ridge)[0], weighted)
    np.testing.assert_allclose(solution.influence().numpy(), influence, rtol=0, atol=1e-10 * (n + 1))
    np.testing.assert_allclose(solution.shift.numpy(), judge(given_, ridge), rtol=0, atol=1e-10 * (n + 1))
    right = torch.randn(d_in, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    inverse = np.linalg.solve(system_of(given_, ridge)[0], right.numpy())
    assert error(solution.inverse_on(right), inverse) < 1e-9


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("preserved", ["none", "zeros"])
def test_no_row_and_one_row(n: int, preserved: str) -> None:
    given_ = problem(5, 1, 8, 3)
    given_ = (given_[0][:n], given_[1][:n], torch.ones(n, dtype=torch.float64))
    found = solve(*given_, None if preserved == "none" else torch.zeros(8, 8), 0.5)
    np.testing.assert_allclose(found.shift.numpy(), judge(given_, 0.5), rtol=1e-12, atol=0)


@pytest.mark.usefixtures("small_duals")
def test_more_rows_than_coordinates_take_the_primal_form() -> None:
    given_ = problem(6, 50, 12, 3)
    found = solve(*given_, None, 0.7)
    assert found.dual is None
    assert error(found.shift, judge(given_, 0.7)) < 1e-12


def by_autograd(given_: Problem, slope: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """dL/dD and dL/dλ of L = ⟨S, slope⟩."""
    keys, values, weights = given_
    values, lam = values.clone().requires_grad_(), torch.tensor(ridge, dtype=torch.float64, requires_grad=True)
    system = keys.T @ torch.diag(weights) @ keys + lam * torch.eye(keys.shape[1], dtype=torch.float64)
    shift = torch.linalg.solve(system, keys.T @ torch.diag(weights) @ values)
    by_values, by_ridge = torch.autograd.grad((shift * slope).sum(), [values, lam])
    return by_values, by_ridge


@pytest.mark.usefixtures("small_duals")
@pytest.mark.parametrize("exponent", [0, 3, 6])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_through_the_dual(exponent: int, weighted: bool) -> None:
    (keys, values, weights), ridge = conditioned(exponent)
    if weighted:
        weights = problem(3, len(weights), 1, 1)[2]  # zeros among them
    slope = torch.randn(40, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    by_values, by_ridge = solve_backward(solve(keys, values, weights, None, ridge), slope)
    wanted, wanted_ridge = by_autograd((keys, values, weights), slope, ridge)
    assert error(by_values, wanted.numpy()) < 1e-9
    # At a condition number of a million the judge itself is off by 1e-7; the dual, by 50 digits, by 1e-11.
    assert by_ridge == pytest.approx(float(wanted_ridge), rel=10.0 ** (exponent - 12) + 1e-11)


def halved(solution: Solution) -> Solution:
    """The same with its factor halved: A⁻¹, and with it all that is taken from the factor, four times too large."""
    return Solution(
        solution.shift, solution.keys, solution.weights, Factor(solution.system.lower / 2), solution.kept, solution.dual
    )


@pytest.mark.usefixtures("small_duals")
@pytest.mark.parametrize("form", FORMS)
def test_a_broken_factor_is_noticed_by_the_judges(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given_, ridge = conditioned(2)
    slope = torch.randn(40, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole = by_form(form, given_, ridge)
    wanted, wanted_ridge = by_autograd(given_, slope, ridge)
    by_values, _ = solve_backward(whole, slope)
    assert error(by_values, wanted.numpy()) < 1e-9
    broken_values, broken_ridge = solve_backward(halved(whole), slope)
    assert error(broken_values, wanted.numpy()) > 1e-3
    assert abs(broken_ridge - float(wanted_ridge)) > 1e-3 * abs(float(wanted_ridge))
    assert error(halved(whole).influence(), whole.influence().numpy()) > 1e-3
    assert error(halved(whole).inverse_on(slope), whole.inverse_on(slope).numpy()) > 1e-3
    real: Callable[[Tensor], Tensor] = solver._cholesky
    monkeypatch.setattr(solver, "_cholesky", lambda matrix: 1.001 * real(matrix))
    assert error(by_form(form, given_, ridge).shift, judge(given_, ridge)) > 1e-4


def test_the_dual_is_taken_only_where_it_saves_much() -> None:
    """The bundled model's published solves (d_in 1,024), and those of all narrower ones, never change their form."""
    assert not any(dual_is_worth_it(n, d_in) for d_in in (32, 768, 1024, 1200) for n in range(1, 3 * d_in))
    assert all(dual_is_worth_it(n, 3072) for n in (0, 1, 256, 2048))
    assert not any(dual_is_worth_it(n, 3072) for n in (3072, 4000, 10**5))


@pytest.mark.parametrize("n", [30, 0])
def test_a_small_solve_without_preservation_is_that_with_zeros_to_the_last_bit(n: int) -> None:
    keys, values, weights = problem(7, 30, 64, 9)
    keys = keys.clamp_min(0)  # as an activation, with signed zeros in its products
    given_ = (keys[:n].float(), values[:n].float(), weights[:n].float())
    one, other = solve(*given_, None, 1.0), solve(*given_, torch.zeros(64, 64), 1.0)
    assert one.dual is None
    assert one.shift.numpy().tobytes() == other.shift.numpy().tobytes()
    assert one.influence().numpy().tobytes() == other.influence().numpy().tobytes()


@pytest.mark.usefixtures("small_duals")
@pytest.mark.parametrize("ridge", [0.0, -1.0, float("nan"), float("inf")])
def test_without_a_ridge_that_is_one_there_is_no_dual_and_singular_systems_are_refused(ridge: float) -> None:
    keys, values, _ = problem(8, 5, 20, 2)
    with pytest.raises(StepRefusedError, match="singular"):
        solve(keys, values, torch.ones(5), None, ridge)
    many = problem(8, 60, 20, 2)
    if ridge == 0:
        assert error(solve(*many, None, ridge).shift, judge(many, 0.0)) < 1e-10


@pytest.mark.usefixtures("small_duals")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", [0, 1, 2])
def test_the_dual_refuses_what_is_no_number(bad: float, part: int) -> None:
    given_ = [tensor.clone() for tensor in problem(9, 5, 20, 2)]
    given_[part].view(-1)[1] = bad
    with pytest.raises(StepRefusedError):
        solve(given_[0], given_[1], given_[2], None, 1.0)


@pytest.mark.usefixtures("small_duals")
def test_the_dual_refuses_rows_that_are_alike_beyond_what_its_ridge_can_part() -> None:
    keys, values, _ = problem(10, 6, 20, 2)
    twice = (keys[[1, 1, 2]], values[:3], torch.ones(3, dtype=torch.float64))
    with pytest.raises(StepRefusedError, match="singular"):
        solve(*twice, None, 1e-30)
    assert bool(torch.isfinite(solve(*twice, None, 1e-6).shift).all())
