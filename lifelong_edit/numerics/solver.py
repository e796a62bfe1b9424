"""Ridge regression: value differences in, one weight shift per matrix out.

A = Σ w kᵀk + P + λI,  S = A⁻¹ Σ w kᵀd,  in float64. With P = 0 and w = 1 this is MALMEN's
least-squares aggregation (arXiv 2311.04661, equation 5); with P = c₀C₀ and earlier keys it is MEMIT's
form (arXiv 2210.07229, equation 14) for value differences.

One answer, four ways to it, taken by their cost: primal (a factor of A, d_in × d_in), Woodbury (a kept factor of
P + λI and an n × n system) and, for P = 0, dual (an n × n system alone). Where P is kept by its rows (`LowRank`) no
matrix is d_in × d_in: Woodbury twice, over the rows of P and over those of the solve.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from lifelong_edit.errors import StepRefusedError
from lifelong_edit.numerics.devices import to_solve
from lifelong_edit.numerics.lowrank import Gram, LowRank, Scaled, few_enough, require_positive

WORTH_A_DUAL = 1e9
"""How many operations the dual form has to save before it is taken. Below that a factorisation takes milliseconds, and
a solve that keeps its form keeps its answer to the last bit: up to a d_in of 1,219, whatever n is, and so for the
bundled model (1,024), the digests of stores stay what they were."""


@dataclass(frozen=True)
class Factor:
    """Lower Cholesky factor (d_in, d_in) of P + λI, kept over the passes of one batch."""

    lower: Tensor


Kept = Factor | Scaled
"""P + λI factorised: whole, or by the rows of P."""
Held = Mapping[str, tuple[Gram | None, Kept | None]]
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
    where `dual` is there. moved: (P + λI)⁻¹Kᵀ√w (d_in, n), where P is kept by its rows.
    """

    shift: Tensor
    keys: Tensor
    weights: Tensor
    system: Factor
    kept: Kept | None = None
    dual: Dual | None = None
    moved: Tensor | None = None

    def inverse_on(self, right: Tensor) -> Tensor:
        """A⁻¹ right, (d_in, m), with the factorisation that gave the shift."""
        if self.dual is not None:
            rows = _rooted(self.keys, self.weights)
            return (right - rows.T @ torch.cholesky_solve(rows @ right, self.system.lower)) / self.dual.ridge
        if self.kept is None:
            return torch.cholesky_solve(right, self.system.lower)
        if isinstance(self.kept, Scaled):
            assert self.moved is not None  # such a solve leaves it
            start = self.kept.inverse_on(right)
            inner = torch.cholesky_solve(_rooted(self.keys, self.weights) @ start, self.system.lower)
            return start - self.moved @ inner
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
        if self.moved is not None:
            return self.moved @ torch.cholesky_solve(self.weights.sqrt().diag(), self.system.lower)
        return self.inverse_on((self.weights[:, None] * self.keys).T)


@dataclass(frozen=True)
class Thin:
    """What is left of a solution where its matrix is large: L (d_in, n) float32, with S = LD."""

    left: Tensor

    def influence(self) -> Tensor:
        """L."""
        return self.left


@overload
def factorise(preserved: Tensor, ridge: float) -> Factor: ...
@overload
def factorise(preserved: LowRank, ridge: float) -> Scaled: ...
def factorise(preserved: Gram, ridge: float) -> Kept:
    """Factor of P + λI; preserved is P, (d_in, d_in), whole or by its rows.

    Raises StepRefusedError where it is singular.
    """
    if isinstance(preserved, LowRank):
        return _scaled(preserved, ridge)
    preserved = to_solve(preserved)
    matrix = preserved + ridge * torch.eye(len(preserved), dtype=torch.float64, device=preserved.device)
    return Factor(_cholesky(matrix))


def solve(
    keys: Tensor, values: Tensor, weights: Tensor, preserved: Gram | None, ridge: float, kept: Kept | None = None
) -> Solution:
    """S = (Kᵀdiag(w)K + P + λI)⁻¹ Kᵀdiag(w)D.

    keys (n, d_in), values D (n, d_out), weights (n,) ≥ 0, preserved P (d_in, d_in) or None for P = 0, ridge λ ≥ 0.
    For P = 0 the dual form is taken where it saves enough (`dual_is_worth_it`) and λ > 0; with `kept`, a factor of
    P + λI, and n well below d_in Woodbury's identity; else the primal form. A P that is kept by its rows stays so,
    with a kept factor or one made here.
    Raises StepRefusedError where a number is not finite or the system is singular.
    """
    keys, values, weights = to_solve(keys), to_solve(values), to_solve(weights)
    given = [("key", keys), ("value difference", values)]
    if isinstance(preserved, Tensor):
        preserved = to_solve(preserved)
        given.append(("preserved gram", preserved))
    for name, part in given:
        if not bool(torch.isfinite(part).all()):
            raise StepRefusedError(f"a {name} of the solve is not finite; expected numbers; nothing was applied")
    if isinstance(preserved, LowRank):
        return _by_rows(keys, values, weights, kept if isinstance(kept, Scaled) else factorise(preserved, ridge))
    if preserved is None and 0 < ridge < math.inf and dual_is_worth_it(*keys.shape):
        return _over_rows(keys, values, weights, ridge)
    if isinstance(kept, Factor) and woodbury_is_cheaper(*keys.shape):
        shift, inner = _woodbury(keys, values, weights, kept)
        return Solution(shift, keys, weights, inner, kept)
    gram = (keys * weights[:, None]).T @ keys
    gram += 0.0 if preserved is None else preserved  # a zero, because it makes of -0.0 what a P of zeros does
    gram.diagonal().add_(ridge)
    system = Factor(_cholesky(gram))
    return Solution(torch.cholesky_solve(keys.T @ (weights[:, None] * values), system.lower), keys, weights, system)


class Gathered:
    """A = P + λI + Σ w kᵀk and R = Σ w kᵀd of a P that is kept by its rows, as long as all rows are few enough."""

    def __init__(self, preserved: LowRank, ridge: float) -> None:
        self._preserved, self._ridge = preserved, ridge
        self._taken: list[tuple[Tensor, Tensor, Tensor]] = []
        self._count = len(preserved.rows)

    def take(self, keys: Tensor, values: Tensor, weights: Tensor) -> bool:
        """Take rows in: keys (n, d_in), values (n, d_out), weights (n,). False where they are too many by now."""
        self._taken.append((to_solve(keys), to_solve(values), to_solve(weights)))
        self._count += len(keys)
        return few_enough(self._count, keys.shape[1])

    def sums(self) -> tuple[Tensor, Tensor]:
        """A (d_in, d_in) and R (d_in, d_out), float64."""
        system = self._preserved.dense()
        system.diagonal().add_(self._ridge)
        right: Tensor | None = None
        for keys, values, weights in self._taken:
            weighted = weights[:, None] * keys
            system.addmm_(weighted.T, keys)
            right = weighted.T @ values if right is None else right.addmm_(weighted.T, values)
        assert right is not None  # nobody sums before a row was taken
        return system, right

    def shift(self) -> Tensor:
        """S = A⁻¹R, (d_in, d_out). Raises StepRefusedError as `solve` does."""
        keys, values, weights = (torch.cat(parts) for parts in zip(*self._taken, strict=True))
        return solve(keys, values, weights, self._preserved, self._ridge).shift


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


def _scaled(preserved: LowRank, ridge: float) -> Scaled:
    """P + λI ready for solves, see `Scaled`."""
    if not preserved.is_finite():
        raise StepRefusedError("a preserved gram of the solve is not finite; expected numbers; nothing was applied")
    rest = preserved.rest + ridge
    require_positive(rest)
    root = rest.sqrt()
    rows = preserved.rows / root
    inner = rows @ rows.T
    inner.diagonal().add_(1.0)
    found = Scaled(root, rows, _cholesky(inner))
    if preserved.gone is None:
        return found
    moved = found.inverse_on(preserved.gone.T)
    inner = -(preserved.gone @ moved)
    inner.diagonal().add_(1.0)
    return Scaled(root, rows, found.lower, preserved.gone, moved, _cholesky((inner + inner.T) / 2))


def _by_rows(keys: Tensor, values: Tensor, weights: Tensor, kept: Scaled) -> Solution:
    """Woodbury's identity over the rows of the solve, with (P + λI)⁻¹ through those of P."""
    rows = _rooted(keys, weights)
    moved = kept.inverse_on(rows.T)
    inner = rows @ moved
    inner.diagonal().add_(1.0)
    system = Factor(_cholesky((inner + inner.T) / 2))
    answer = torch.cholesky_solve(weights.sqrt()[:, None] * values, system.lower)
    return Solution(moved @ answer, keys, weights, system, kept, moved=moved)


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
