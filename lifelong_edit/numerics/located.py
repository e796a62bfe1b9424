"""The combine rules of locate-then-edit: keys in, a matrix L out, with which a layer's shift is S = L R.

R (n, d_out) is what each fact asks of a matrix at its key; K (n, d_in) are the facts' keys; H (d_in, d_in) is what
holds still: c₀C₀ of text and, where a rule keeps earlier facts in mind, the gram of their keys. They differ in L alone:

    ROME       L = uᵀ / (k₀ uᵀ), u = k̄ H⁻¹          one fact (Meng et al., arXiv 2202.05262, equation 2)
    MEMIT      L = (H + KᵀK)⁻¹ Kᵀ                    (arXiv 2210.07229, equation 14)
    EMMET      L = H⁻¹Kᵀ (K H⁻¹ Kᵀ + μI)⁻¹           (Gupta et al., arXiv 2403.14236)
    AlphaEdit  L = [P (KᵀK + Q) + λI]⁻¹ P Kᵀ         P projects on what text leaves free (arXiv 2410.02355)
    NSE        MEMIT's on chosen inputs, else 0       (arXiv 2410.04045)

All in float64, on the device that solves. H and C₀ may be kept by their rows (`lowrank.LowRank`): then nothing is
d_in × d_in. They raise StepRefusedError where a system is singular.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lifelong_edit.errors import StepRefusedError
from lifelong_edit.numerics.lowrank import Gram, LowRank, largest
from lifelong_edit.numerics.solver import factorise, solve, solve_sums


def _inverse_on(metric: Gram, right: Tensor) -> Tensor:
    """H⁻¹ right, (d_in, m)."""
    return factorise(metric, 0.0).inverse_on(right) if isinstance(metric, LowRank) else solve_sums(metric, right)


def rank_one(mean: Tensor, plain: Tensor, metric: Gram) -> Tensor:
    """L (d_in, 1) of one fact: after it the key k₀ meets its row of R exactly.

    mean: k̄ (1, d_in), the fact's key in the mean over contexts. plain: k₀ (1, d_in), in its own words; R-ROME (arXiv
    2403.07175) has the mean there too. metric: H (d_in, d_in), whose scale does not matter.
    """
    direction = _inverse_on(metric, mean.T)
    met = plain @ direction
    if not bool(met.abs() > torch.finfo(met.dtype).tiny):
        raise StepRefusedError(
            "a fact's key in its own words meets nothing of its key behind contexts; expected keys that are alike; "
            "take the rule r-rome, which asks at one key"
        )
    return direction / met


def ridge(keys: Tensor, held: Gram) -> Tensor:
    """L (d_in, n) = (H + KᵀK)⁻¹Kᵀ: what each fact asks, against all that holds still."""
    if isinstance(held, LowRank):
        return _against(keys, held)
    return solve_sums(held + keys.T @ keys, keys.T)


def _against(keys: Tensor, held: LowRank, ridge: float = 0.0) -> Tensor:
    """L (d_in, n) = (H + λI + KᵀK)⁻¹Kᵀ of an H that is kept by its rows."""
    nothing = torch.zeros(len(keys), 1, dtype=keys.dtype, device=keys.device)
    return solve(keys, nothing, torch.ones_like(nothing[:, 0]), held, ridge).influence()


def equality(keys: Tensor, held: Gram, slack: float) -> Tensor:
    """L (d_in, n) = H⁻¹Kᵀ(KH⁻¹Kᵀ + μI)⁻¹; slack: μ.

    With μ = 0 every key meets its row of R exactly, KS = R; with μ = 1 it is `ridge` (the push-through identity).
    """
    moved = _inverse_on(held, keys.T)
    inner = keys @ moved
    inner.diagonal().add_(slack)
    return solve_sums((inner + inner.T) / 2, moved.T).T


@dataclass(frozen=True)
class Projection:
    """P = UUᵀ of a basis U (d_in, r) or, where that would be most of the space, P = I − VVᵀ of what it leaves out.

    left: tr(PC₀), what text keys have in it.
    """

    basis: Tensor
    left: float
    complement: bool = False

    @property
    def rank(self) -> int:
        """How many directions it lets through."""
        width, count = self.basis.shape
        return width - count if self.complement else count

    def on(self, rows: Tensor) -> Tensor:
        """KP for rows K (n, d_in)."""
        along = (rows @ self.basis) @ self.basis.T
        return rows - along if self.complement else along


def free_directions(gram: Gram, threshold: float | None, share: float) -> Projection:
    """P on the eigenvectors of C₀ along which text keys have next to nothing.

    threshold: those whose eigenvalue is below it, as published. Without one, as many of the smallest as hold at most
    `share` of the trace together: the mean of ‖kP‖² over text keys is then that share of the mean of ‖k‖².
    """
    if isinstance(gram, LowRank) and (found := largest(gram, share, threshold)) is not None:
        trace = float(gram.rows.square().sum() + gram.rest.sum())
        return Projection(found[1], trace - float(found[0].sum()), complement=True)
    gram = gram.dense() if isinstance(gram, LowRank) else gram
    values, vectors = torch.linalg.eigh(gram)
    values = values.clamp_min(0)
    chosen = values.cumsum(0) <= share * values.sum() if threshold is None else values < threshold
    basis: Tensor = vectors[:, chosen]
    return Projection(basis, float((basis * (gram @ basis)).sum()))


def projected(keys: Tensor, free: Projection, earlier: Gram | None, penalty: float) -> Tensor:
    """L (d_in, n) = [P(KᵀK + Q) + λI]⁻¹PKᵀ; free: P; earlier: Q; penalty: λ.

    S lies in the span of U, so the system is solved there: U (Uᵀ(KᵀK + Q)U + λI)⁻¹ UᵀKᵀ, symmetric and r × r. With P by
    what it leaves out, and Q by its rows E, it is (PEᵀEP + PKᵀKP + λI)⁻¹PKᵀ, through those rows alone.
    """
    if free.complement and (earlier is None or isinstance(earlier, LowRank)):
        keys = free.on(keys)
        before = keys[:0] if earlier is None else free.on(earlier.rows)
        return _against(keys, LowRank(before, torch.zeros_like(before.sum(0))), penalty)
    basis = free.basis
    if free.complement:  # Q is a matrix: there are so many earlier facts that it is the least of them
        basis = torch.linalg.qr(basis, mode="complete").Q[:, basis.shape[1] :]
    within = keys @ basis
    system = within.T @ within
    if isinstance(earlier, LowRank):
        system += earlier.within(basis)
    elif earlier is not None:
        system += basis.T @ earlier @ basis
    system.diagonal().add_(penalty)
    return basis @ solve_sums(system, within.T)


def strongest(keys: Tensor, share: float) -> Tensor:
    """Mask (d_in,) of the inputs that carry a share of Σ|k| over facts: the strongest, and one beyond the share."""
    strength = keys.abs().sum(0)
    order = torch.argsort(strength, descending=True, stable=True)
    carried = strength[order].cumsum(0)
    count = int((carried < share * carried[-1]).sum()) + 1
    chosen = torch.zeros(len(strength), dtype=torch.bool, device=keys.device)
    chosen[order[: len(strength) if share >= 1 else count]] = True
    return chosen


def ridge_among(keys: Tensor, held: Gram, chosen: Tensor) -> Tensor:
    """L (d_in, n): `ridge` on the chosen inputs (d_in,) bool alone, zero at all others."""
    found = torch.zeros(keys.shape[1], len(keys), dtype=keys.dtype, device=keys.device)
    part = held.among(chosen) if isinstance(held, LowRank) else held[chosen][:, chosen]
    found[chosen] = ridge(keys[:, chosen], part)
    return found
