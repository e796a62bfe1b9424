"""Grams that are never multiplied out: P = RᵀR + diag(r) − NᵀN, kept as its rows and solved with through them.

A gram of d_in = 14,336 is 1.5 GiB in float64, and a solve wants three or four of them. Where few rows make up all of it
(the factor of text, the keys of facts) beside a diagonal, Woodbury's identity needs no matrix but those rows and one of
their number squared: memory O(d_in·m), time O(d_in·m²) for m rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lifelong_edit.errors import StepRefusedError


@dataclass(frozen=True)
class LowRank:
    """P (d_in, d_in) = RᵀR + diag(r) − NᵀN, all float64 on one device.

    rows: R (m, d_in). rest: r (d_in,) ≥ 0. gone: N (k, d_in), what is taken out of a sum of which it was a part; None
    where nothing is.
    """

    rows: Tensor
    rest: Tensor
    gone: Tensor | None = None

    def clone(self) -> LowRank:
        """Itself: it is never written to."""
        return self

    def plus(self, rows: Tensor) -> LowRank:
        """P + KᵀK for rows K (n, d_in)."""
        return replace(self, rows=torch.cat([self.rows, rows.to(self.rows)]))

    def minus(self, rows: Tensor) -> LowRank:
        """P − KᵀK for rows K (n, d_in)."""
        rows = rows.to(self.rows)
        return replace(self, gone=rows if self.gone is None else torch.cat([self.gone, rows]))

    def joined(self, other: LowRank) -> LowRank:
        """The sum of both."""
        found = replace(self.plus(other.rows), rest=self.rest + other.rest)
        return found if other.gone is None else found.minus(other.gone)

    def among(self, chosen: Tensor) -> LowRank:
        """P[chosen, chosen] for a mask (d_in,) bool."""
        gone = None if self.gone is None else self.gone[:, chosen]
        return LowRank(self.rows[:, chosen], self.rest[chosen], gone)

    def within(self, basis: Tensor) -> Tensor:
        """UᵀPU (r, r) for U (d_in, r)."""
        rows = self.rows @ basis
        found = rows.T @ rows + basis.T @ (self.rest[:, None] * basis)
        return found if self.gone is None else found - (self.gone @ basis).T @ (self.gone @ basis)

    def add_to(self, gram: Tensor) -> Tensor:
        """gram + P, in place: (d_in, d_in) float64."""
        gram.addmm_(self.rows.T, self.rows)
        if self.gone is not None:
            gram.addmm_(self.gone.T, self.gone, alpha=-1)
        gram.diagonal().add_(self.rest)
        return gram

    def dense(self) -> Tensor:
        """P, (d_in, d_in) float64."""
        return self.add_to(torch.zeros(len(self.rest), len(self.rest), dtype=torch.float64, device=self.rest.device))

    def is_finite(self) -> bool:
        """Whether all numbers are."""
        parts = (self.rows, self.rest) if self.gone is None else (self.rows, self.rest, self.gone)
        return all(bool(torch.isfinite(part).all()) for part in parts)


Gram = Tensor | LowRank
"""A gram (d_in, d_in), whole or by its rows."""


def few_enough(rows: int, d_in: int) -> bool:
    """Whether so many rows are less work, and fewer numbers, than the matrix: m²d + m³/3 ≤ 7d³/24 < d³/3."""
    return 2 * rows <= d_in


def joined(one: Gram, other: Gram) -> Gram:
    """The sum of two grams: by rows where both are."""
    if isinstance(one, LowRank):
        return one.joined(other) if isinstance(other, LowRank) else one.add_to(other.clone())
    return other.add_to(one.clone()) if isinstance(other, LowRank) else one + other


def largest(gram: LowRank, share: float, threshold: float | None) -> tuple[Tensor, Tensor] | None:
    """Greatest eigenvalues (p,), falling, and eigenvectors (d_in, p) of P without N: those that text takes up.

    As many as leave at most `share` of the trace to all others or, with a threshold, all that are not below it. By
    Lanczos' method (`scipy.sparse.linalg.eigsh`), which needs P times a vector alone. None where they would be more
    than half of all: then the matrix is no more work.
    """
    from scipy.sparse.linalg import LinearOperator, eigsh

    width = len(gram.rest)
    rows, rest = gram.rows.cpu().numpy(), gram.rest.cpu().numpy()
    trace = float(gram.rows.square().sum() + gram.rest.sum())
    operator = LinearOperator((width, width), lambda v: rows.T @ (rows @ v) + rest * v.ravel(), dtype=rows.dtype)
    count = min(128, width // 4)
    while 0 < count <= width // 2:
        found, vectors = eigsh(operator, count, which="LA", v0=rest + rest.mean() + 1)
        values = torch.from_numpy(found[::-1].copy()).to(gram.rest)
        enough = values < threshold if threshold is not None else trace - values.cumsum(0) <= share * trace
        if bool(enough.any()):
            taken = int(enough.nonzero()[0]) + (threshold is None)
            kept = torch.from_numpy(vectors[:, ::-1].copy()).to(gram.rest)[:, :taken]
            return values[:taken], kept
        count *= 2
    return None


@dataclass(frozen=True)
class Scaled:
    """P + λI ready for solves, of a P that is kept by its rows. Made by `solver.factorise`.

    With D = diag(r) + λI and R' = RD⁻½ it is D½(I + R'ᵀR')D½ − NᵀN. root: D½ (d_in,). rows: R' (m, d_in). lower:
    Cholesky factor (m, m) of I + R'R'ᵀ. gone: N (k, d_in); lower_gone: Cholesky factor (k, k) of I − N(P + λI + NᵀN)⁻¹
    Nᵀ, which is positive definite where P + λI is.
    """

    root: Tensor
    rows: Tensor
    lower: Tensor
    gone: Tensor | None = None
    moved_gone: Tensor | None = None
    lower_gone: Tensor | None = None

    def inverse_on(self, right: Tensor) -> Tensor:
        """(P + λI)⁻¹ right, (d_in, m)."""
        scaled = right / self.root[:, None]
        found = scaled - self.rows.T @ torch.cholesky_solve(self.rows @ scaled, self.lower)
        found /= self.root[:, None]
        if self.gone is None or self.moved_gone is None or self.lower_gone is None:
            return found
        return found + self.moved_gone @ torch.cholesky_solve(self.gone @ found, self.lower_gone)


def require_positive(rest: Tensor) -> None:
    """Raise StepRefusedError where r + λ has an entry that is not above zero."""
    if not bool((rest > 0).all()):
        raise StepRefusedError(
            f"the solve's matrix ({len(rest)} × {len(rest)}) is singular to working precision; "
            "expected a positive definite one; set a greater ridge or c0"
        )
