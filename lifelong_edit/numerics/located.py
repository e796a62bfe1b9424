"""The combine rules of locate-then-edit: keys in, a matrix L out, with which a layer's shift is S = L R.

R (n, d_out) is what each fact asks of a matrix at its key; K (n, d_in) are the facts' keys; H (d_in, d_in) is what
holds still: c₀C₀ of text and, where a rule keeps earlier facts in mind, the gram of their keys. They differ in L alone:

    ROME       L = uᵀ / (k₀ uᵀ), u = k̄ H⁻¹          one fact (Meng et al., arXiv 2202.05262, equation 2)
    MEMIT      L = (H + KᵀK)⁻¹ Kᵀ                    (arXiv 2210.07229, equation 14)
    EMMET      L = H⁻¹Kᵀ (K H⁻¹ Kᵀ + μI)⁻¹           (Gupta et al., arXiv 2403.14236)
    AlphaEdit  L = [P (KᵀK + Q) + λI]⁻¹ P Kᵀ         P projects on what text leaves free (arXiv 2410.02355)
    NSE        MEMIT's on chosen inputs, else 0       (arXiv 2410.04045)

All in float64, on the device that solves. They raise StepRefusedError where a system is singular.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lifelong_edit.errors import StepRefusedError
from lifelong_edit.numerics.solver import solve_sums


def rank_one(mean: Tensor, plain: Tensor, metric: Tensor) -> Tensor:
    """L (d_in, 1) of one fact: after it the key k₀ meets its row of R exactly.

    mean: k̄ (1, d_in), the fact's key in the mean over contexts. plain: k₀ (1, d_in), in its own words; R-ROME (arXiv
    2403.07175) has the mean there too. metric: H (d_in, d_in), whose scale does not matter.
    """
    direction = solve_sums(metric, mean.T)
    met = plain @ direction
    if not bool(met.abs() > torch.finfo(met.dtype).tiny):
        raise StepRefusedError(
            "a fact's key in its own words meets nothing of its key behind contexts; expected keys that are alike; "
            "take the rule r-rome, which asks at one key"
        )
    return direction / met


def ridge(keys: Tensor, held: Tensor) -> Tensor:
    """L (d_in, n) = (H + KᵀK)⁻¹Kᵀ: what each fact asks, against all that holds still."""
    return solve_sums(held + keys.T @ keys, keys.T)


def equality(keys: Tensor, held: Tensor, slack: float) -> Tensor:
    """L (d_in, n) = H⁻¹Kᵀ(KH⁻¹Kᵀ + μI)⁻¹; slack: μ.

    With μ = 0 every key meets its row of R exactly, KS = R; with μ = 1 it is `ridge` (the push-through identity).
    """
    moved = solve_sums(held, keys.T)
    inner = keys @ moved
    inner.diagonal().add_(slack)
    return solve_sums((inner + inner.T) / 2, moved.T).T


def free_directions(gram: Tensor, threshold: float | None, share: float) -> Tensor:
    """U (d_in, r): eigenvectors of C₀ along which text keys have next to nothing; P = UUᵀ.

    threshold: those whose eigenvalue is below it, as published. Without one, as many of the smallest as hold at most
    `share` of the trace together: the mean of ‖kP‖² over text keys is then that share of the mean of ‖k‖².
    """
    values, vectors = torch.linalg.eigh(gram)
    values = values.clamp_min(0)
    chosen = values.cumsum(0) <= share * values.sum() if threshold is None else values < threshold
    found: Tensor = vectors[:, chosen]
    return found


def projected(keys: Tensor, basis: Tensor, earlier: Tensor | None, penalty: float) -> Tensor:
    """L (d_in, n) = [P(KᵀK + Q) + λI]⁻¹PKᵀ with P = UUᵀ; basis: U (d_in, r); earlier: Q; penalty: λ.

    S lies in the span of U, so the system is solved there: U (Uᵀ(KᵀK + Q)U + λI)⁻¹ UᵀKᵀ, symmetric and r × r.
    """
    within = keys @ basis
    system = within.T @ within
    if earlier is not None:
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


def ridge_among(keys: Tensor, held: Tensor, chosen: Tensor) -> Tensor:
    """L (d_in, n): `ridge` on the chosen inputs (d_in,) bool alone, zero at all others."""
    found = torch.zeros(keys.shape[1], len(keys), dtype=keys.dtype, device=keys.device)
    found[chosen] = ridge(keys[:, chosen], held[chosen][:, chosen])
    return found
