"""Ridge regression: value differences in, one weight shift per matrix out.

A = Σ w kᵀk + P + λI,  S = A⁻¹ Σ w kᵀd,  in float64. With P = 0 and w = 1 this is MALMEN's
least-squares aggregation (arXiv 2311.04661, equation 5); with P = c₀C₀ and earlier keys it is MEMIT's
form (arXiv 2210.07229, equation 14) for value differences.

One answer, three ways to it, taken by their cost: primal (a factor of A, d_in × d_in), Woodbury (a kept factor of
P + λI and an n × n system) and, for P = 0, dual (an n × n system alone).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lifelong_edit.errors import StepRefusedError
from lifelong_edit.numerics.devices import to_solve

WORTH_A_DUAL = 1e9
"""How many operations the dual form has to save before it is taken. Below that a factorisation takes milliseconds, and
a solve that keeps its form keeps its answer to the last bit: up to a d_in of 1,219, whatever n is, and so for the
bundled model (1,024), the digests of stores stay what they were."""


@dataclass(frozen=True)
class Factor:
    """Lower Cholesky factor (d_in, d_in) of P + λI, kept over the passes of one batch."""

    lower: Tensor


Held = Mapping[str, tuple[Tensor | None, Factor | None]]
"""Of each module P, None where it is zero, and a factor of P + λI where there is one."""


@dataclass(frozen=True)
class Dual:
    """What a solve over rows leaves beside its factor: λ, and Y (n, d_out) with S = UᵀY for U = √w K."""

    ridge: float
    answer: Tensor


@dataclass(frozen=True)
class Solution:
    """A solved system, with what its gradient and its factored form need.

    shift: S (d_in, d_out). keys: K (n, d_in). weights: w (n,). All float64, on the device that solves
    (`devices.solve_device`).
    system: factor of A itself, or of the inner matrix of Woodbury's identity where `kept` was used, or of UUᵀ + λI
    where `dual` is there.
    """

    shift: Tensor
    keys: Tensor
    weights: Tensor
    system: Factor
    kept: Factor | None = None
    dual: Dual | None = None

    def inverse_on(self, right: Tensor) -> Tensor:
        """A⁻¹ right, (d_in, m), with the factorisation that gave the shift."""
        if self.dual is not None:
            rows = _rooted(self.keys, self.weights)
            return (right - rows.T @ torch.cholesky_solve(rows @ right, self.system.lower)) / self.dual.ridge
        if self.kept is None:
            return torch.cholesky_solve(right, self.system.lower)
        half = _half(self.keys, self.weights, self.kept)
        start = torch.linalg.solve_triangular(self.kept.lower, right, upper=False)
        start = start - half @ torch.cholesky_solve(half.T @ start, self.system.lower)
        found: Tensor = torch.linalg.solve_triangular(self.kept.lower.T, start, upper=True)
        return found

    def influence(self) -> Tensor:
        """L = A⁻¹Kᵀdiag(w), (d_in, n): with the value differences D, S = LD."""
        if self.dual is not None:  # Uᵀ(UUᵀ + λI)⁻¹√w: no difference of large numbers
            rows = _rooted(self.keys, self.weights)
            return torch.cholesky_solve(rows, self.system.lower).T * self.weights.sqrt()
        return self.inverse_on((self.weights[:, None] * self.keys).T)


def factorise(preserved: Tensor, ridge: float) -> Factor:
    """Factor of P + λI; preserved is P, (d_in, d_in)."""
    preserved = to_solve(preserved)
    matrix = preserved + ridge * torch.eye(len(preserved), dtype=torch.float64, device=preserved.device)
    return Factor(_cholesky(matrix))


def solve(
    keys: Tensor, values: Tensor, weights: Tensor, preserved: Tensor | None, ridge: float, kept: Factor | None = None
) -> Solution:
    """S = (Kᵀdiag(w)K + P + λI)⁻¹ Kᵀdiag(w)D.

    keys (n, d_in), values D (n, d_out), weights (n,) ≥ 0, preserved P (d_in, d_in) or None for P = 0, ridge λ ≥ 0.
    For P = 0 the dual form is taken where it saves enough (`dual_is_worth_it`) and λ > 0; with `kept`, a factor of
    P + λI, and n well below d_in Woodbury's identity; else the primal form.
    Raises StepRefusedError where a number is not finite or the system is singular.
    """
    keys, values, weights = to_solve(keys), to_solve(values), to_solve(weights)
    given = [("key", keys), ("value difference", values)]
    if preserved is not None:
        preserved = to_solve(preserved)
        given.append(("preserved gram", preserved))
    for name, part in given:
        if not bool(torch.isfinite(part).all()):
            raise StepRefusedError(f"a {name} of the solve is not finite; expected numbers; nothing was applied")
    if preserved is None and 0 < ridge < math.inf and dual_is_worth_it(*keys.shape):
        return _over_rows(keys, values, weights, ridge)
    if kept is not None and woodbury_is_cheaper(*keys.shape):
        shift, inner = _woodbury(keys, values, weights, kept)
        return Solution(shift, keys, weights, inner, kept)
    gram = (keys * weights[:, None]).T @ keys
    gram += 0.0 if preserved is None else preserved  # a zero, because it makes of -0.0 what a P of zeros does
    gram.diagonal().add_(ridge)
    system = Factor(_cholesky(gram))
    return Solution(torch.cholesky_solve(keys.T @ (weights[:, None] * values), system.lower), keys, weights, system)


def solve_sums(system: Tensor, right: Tensor) -> Tensor:
    """S = A⁻¹R from sums over many rows: A (d_in, d_in) with P and λI in it, R = Kᵀdiag(w)D (d_in, d_out), float64.

    Raises StepRefusedError as `solve` does.
    """
    for name, part in (("matrix", system), ("right side", right)):
        if not bool(torch.isfinite(part).all()):
            raise StepRefusedError(f"the {name} of the solve is not finite; expected numbers; nothing was applied")
    return torch.cholesky_solve(right, _cholesky(system))


def woodbury_is_cheaper(n: int, d_in: int) -> bool:
    """Whether n² d + n³/3 (with a kept factor) beats d³/3: both need n d² for the keys."""
    return n * n * d_in + n**3 / 3 < d_in**3 / 3


def dual_is_worth_it(n: int, d_in: int) -> bool:
    """Whether n² d + n³/3 saves WORTH_A_DUAL operations of n d² + d³/3: for P = 0 the primal form alone needs a gram.

    A function of n and d_in alone: what both need for the right side, and what depends on d_out, is left out.
    """
    return n * d_in**2 + d_in**3 / 3 - (n * n * d_in + n**3 / 3) > WORTH_A_DUAL


def solve_backward(solution: Solution, gradient: Tensor) -> tuple[Tensor, float]:
    """Gradients through the solve by hand: dL/dS (d_in, d_out) → dL/dD (n, d_out) and dL/dλ.

    dL/dD = diag(w) K A⁻¹ dL/dS,  dL/dλ = −⟨A⁻¹S, dL/dS⟩ (MALMEN, section 4.3). Of a dual solution, with
    Z = (UUᵀ + λI)⁻¹ U dL/dS = U A⁻¹ dL/dS, these are √w Z and −⟨Y, Z⟩.
    """
    gradient = to_solve(gradient)
    if solution.dual is not None:
        rows = _rooted(solution.keys, solution.weights)
        within = torch.cholesky_solve(rows @ gradient, solution.system.lower)
        return solution.weights.sqrt()[:, None] * within, -float((within * solution.dual.answer).sum())
    carried = solution.inverse_on(gradient)
    return solution.weights[:, None] * (solution.keys @ carried), -float((carried * solution.shift).sum())


def _rooted(keys: Tensor, weights: Tensor) -> Tensor:
    """U = √w K, (n, d_in)."""
    return weights.sqrt()[:, None] * keys


def _over_rows(keys: Tensor, values: Tensor, weights: Tensor, ridge: float) -> Solution:
    """The dual form: S = Uᵀ(UUᵀ + λI)⁻¹√w D, an n × n system."""
    rows = _rooted(keys, weights)
    inner = rows @ rows.T
    inner.diagonal().add_(ridge)
    system = Factor(_cholesky(inner))
    answer = torch.cholesky_solve(weights.sqrt()[:, None] * values, system.lower)
    return Solution(rows.T @ answer, keys, weights, system, dual=Dual(ridge, answer))


def _half(keys: Tensor, weights: Tensor, kept: Factor) -> Tensor:
    """L⁻¹Kᵀ√w of the kept factor L, (d_in, n)."""
    half: Tensor = torch.linalg.solve_triangular(kept.lower, (weights.sqrt()[:, None] * keys).T, upper=False)
    return half


def _woodbury(keys: Tensor, values: Tensor, weights: Tensor, kept: Factor) -> tuple[Tensor, Factor]:
    """A⁻¹Kᵀ√w · √w D = B⁻¹Kᵀ√w (I + √w K B⁻¹ Kᵀ√w)⁻¹ √w D, with B = P + λI."""
    half = _half(keys, weights, kept)
    inner = half.T @ half
    inner.diagonal().add_(1.0)
    system = Factor(_cholesky(inner))
    answer = torch.cholesky_solve(weights.sqrt()[:, None] * values, system.lower)
    return torch.linalg.solve_triangular(kept.lower.T, half @ answer, upper=True), system


def _cholesky(matrix: Tensor) -> Tensor:
    lower: Tensor
    lower, info = torch.linalg.cholesky_ex(matrix)
    if int(info) or not _is_definite(lower, matrix.diagonal()):
        raise StepRefusedError(
            f"the solve's matrix ({len(matrix)} × {len(matrix)}) is singular to working precision; "
            "expected a positive definite one; set a greater ridge or c0"
        )
    return lower


def _is_definite(lower: Tensor, diagonal: Tensor) -> bool:
    """Whether a Cholesky factor (d, d) of a matrix with this diagonal (d,) says more than its rounding.

    Rounding leaves about half of all singular matrices a tiny positive pivot. Two rounds of inverse iteration
    estimate ‖H⁻¹‖ for the matrix scaled to a unit diagonal, which is what the error depends on (Higham, Accuracy
    and Stability of Numerical Algorithms, theorem 10.6).
    """
    root = diagonal.sqrt()
    probe = torch.cos(torch.arange(len(root), dtype=root.dtype, device=root.device))
    for _ in range(2):
        probe = probe / probe.norm()
        probe = root * torch.cholesky_solve((root * probe)[:, None], lower)[:, 0]
    return bool(probe.norm() * len(root) * torch.finfo(root.dtype).eps < 1)
