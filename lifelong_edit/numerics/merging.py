"""Several changes of one matrix made one: trimmed, agreed on a sign, and meant over those that agree."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def trimmed(change: Tensor, density: float) -> Tensor:
    """The change with its largest entries by size alone, a share `density` of all; those of the same size alike."""
    kept = max(1, round(density * change.numel()))
    least = change.abs().flatten().topk(kept).values[-1]
    return torch.where(change.abs() >= least, change, 0.0)


def ties(changes: Sequence[Tensor], density: float) -> Tensor:
    """One change (d_in, d_out) of several: TIES (Yadav et al., arXiv 2306.01708, algorithm 1), without its factor λ.

    Each is trimmed; of each entry the sign is that of the sum; the mean is over those that are not zero and have it.
    """
    stacked = torch.stack([trimmed(change, density) for change in changes])
    sign = stacked.sum(0).sign()
    agreed = (stacked.sign() == sign) & (stacked != 0)
    return torch.where(agreed, stacked, 0.0).sum(0) / agreed.sum(0).clamp_min(1)
