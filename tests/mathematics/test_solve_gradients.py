"""The gradient through the solve, by hand, against autograd through torch.linalg.solve in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lifelong_edit.numerics.solver import factorise, solve, solve_backward


def problem(seed: int, n: int, d_in: int, d_out: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Random K, D, w, P and dL/dS, float64; P is not zero."""
    g = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(n, d, generator=g, dtype=torch.float64) for d in (d_in, d_out))
    text = torch.randn(2 * d_in, d_in, generator=g, dtype=torch.float64)
    slope = torch.randn(d_in, d_out, generator=g, dtype=torch.float64)
    return keys, values, 0.1 + 2 * torch.rand(n, generator=g, dtype=torch.float64), text.T @ text / d_in, slope


def by_autograd(
    keys: Tensor, values: Tensor, weights: Tensor, preserved: Tensor, slope: Tensor, ridge: float
) -> tuple[Tensor, Tensor]:
    """dL/dD and dL/dλ of L = ⟨S, slope⟩."""
    values = values.clone().requires_grad_()
    lam = torch.tensor(ridge, dtype=torch.float64, requires_grad=True)
    system = keys.T @ torch.diag(weights) @ keys + preserved + lam * torch.eye(keys.shape[1], dtype=torch.float64)
    shift = torch.linalg.solve(system, keys.T @ torch.diag(weights) @ values)
    by_values, by_ridge = torch.autograd.grad((shift * slope).sum(), [values, lam])
    return by_values, by_ridge


def off(found: Tensor, expected: Tensor) -> float:
    """Relative error."""
    return float((found - expected).norm() / expected.norm().clamp_min(1e-12))


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 25),
    d_in=st.integers(1, 40),
    d_out=st.integers(1, 8),
    ridge=st.floats(0.05, 20),
    woodbury=st.booleans(),
)
def test_values_and_ridge(seed: int, n: int, d_in: int, d_out: int, ridge: float, woodbury: bool) -> None:
    keys, values, weights, preserved, slope = problem(seed, n, d_in, d_out)
    kept = factorise(preserved, ridge) if woodbury else None
    solution = solve(keys, values, weights, preserved, ridge, kept)
    by_values, by_ridge = solve_backward(solution, slope)
    wanted_values, wanted_ridge = by_autograd(keys, values, weights, preserved, slope, ridge)
    assert off(by_values, wanted_values) < 1e-8
    # ⟨A⁻¹S, dL/dS⟩ may cancel to almost nothing: the error is relative to what was summed.
    summed = float((solution.inverse_on(slope) * solution.shift).abs().sum())
    assert abs(by_ridge - float(wanted_ridge)) <= 1e-8 * max(summed, 1e-12)


@pytest.mark.parametrize("broken", ["weights", "preserved", "ridge", "sign"])
def test_the_judge_notices_what_is_left_out(broken: str) -> None:
    keys, values, weights, preserved, slope = problem(7, 12, 9, 4)
    wanted, wanted_ridge = by_autograd(keys, values, weights, preserved, slope, 0.5)
    if broken == "weights":
        weights = torch.ones_like(weights)
    if broken == "preserved":
        preserved = torch.zeros_like(preserved)
    found, found_ridge = solve_backward(
        solve(keys, values, weights, preserved, 0.6 if broken == "ridge" else 0.5), slope
    )
    if broken == "sign":
        found_ridge = -found_ridge
    else:
        assert off(found, wanted) > 1e-3
    assert abs(found_ridge - float(wanted_ridge)) > 1e-3 * abs(float(wanted_ridge))


def test_a_gradient_in_float32_is_carried_in_float64() -> None:
    keys, values, weights, preserved, slope = problem(8, 6, 20, 3)
    solution = solve(keys.float(), values.float(), weights.float(), preserved, 1.0, factorise(preserved, 1.0))
    by_values, _ = solve_backward(solution, slope.float())
    wanted, _ = by_autograd(
        keys.float().double(), values, weights.float().double(), preserved, slope.float().double(), 1.0
    )
    assert by_values.dtype == torch.float64
    assert off(by_values, wanted) < 1e-8
