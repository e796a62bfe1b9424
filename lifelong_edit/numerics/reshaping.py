"""What wrappers do to a weight shift: shifts in, a shift out. All in float64 where a sum or a factorisation is made."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lifelong_edit.numerics.devices import to_solve
from lifelong_edit.numerics.solver import solve_sums


def most_changing(shift: Tensor, weight: Tensor, share: float) -> Tensor:
    """S (d_in, d_out) with a share of its entries, those of the greatest |S/W|, and zero elsewhere.

    weight: W (d_in, d_out), what the shift is added to in the base. RECT (Gu et al., arXiv 2401.04700, section 5). Of
    entries that are alike those that come first are kept.
    """
    change = shift.abs() / weight.abs().clamp_min(torch.finfo(weight.dtype).tiny)
    count = math.ceil(share * shift.numel())
    kept = torch.argsort(change.flatten(), descending=True, stable=True)[:count]
    found = torch.zeros_like(shift).flatten()
    found[kept] = shift.flatten()[kept]
    return found.reshape(shift.shape)


def greatest_singular(weight: Tensor) -> float:
    """σ_max of a matrix."""
    return float(torch.linalg.matrix_norm(to_solve(weight), ord=2))


def compressed(shift: Tensor, bound: float, base: float) -> Tensor:
    """S (d_in, d_out) with each singular value σ above `bound` at bound + log_base(σ/bound), or σ if that is less.

    PRUNE (Ma et al., arXiv 2405.16821, equation 7). Published without the last: where the bound is below 1/ln(base),
    as of a small matrix, the logarithm begins steeper than one and would make greater what it is to make smaller.
    A shift without such a value is what it was, to the bit.
    """
    left, values, right = torch.linalg.svd(to_solve(shift), full_matrices=False)
    if not bool((values > bound).any()):
        return shift
    logged = bound + torch.log(values / bound) / math.log(base)
    smaller = torch.where(values > bound, torch.minimum(logged, values), values)
    found: Tensor = (left * smaller @ right).to(shift)
    return found


def joined(before: Tensor, wanted: Tensor, gram: Tensor, all_keys: Tensor, anchor: float) -> Tensor:
    """ΔW after a batch: ΔW₋ + P⁻¹KᵀK(E − ΔW₋), P = λI + Σ KᵀK, (d_in, d_out) float64 where the grams are.

    before: ΔW₋. wanted: E, the batch's edit of the base. gram: KᵀK of the batch's tokens, (d_in, d_in); all_keys: the
    same of all batches, this one among them. anchor: λ. SimIE (ICML 2025): from ΔW = 0 on it is the minimum of
    Σ_t‖K_t(ΔW − E_t)‖² + λ‖ΔW‖² over the batches so far.
    """
    before, wanted = (to_solve(shift.to(gram.device)) for shift in (before, wanted))
    system = all_keys.clone()
    system.diagonal().add_(anchor)
    moved: Tensor = before + solve_sums(system, gram @ (wanted - before))
    return moved


def of_length(states: Tensor, length: float, too_long: float) -> tuple[Tensor, Tensor]:
    """Hidden states (n, d) of one length, and a mask (n,) of those that were not too long before.

    NAS (arXiv 2602.02543): what is longer than `too_long` times the length is not asked for.
    """
    size = states.norm(dim=1, keepdim=True)
    return states * (length / size.clamp_min(torch.finfo(states.dtype).tiny)), size[:, 0] <= too_long * length
