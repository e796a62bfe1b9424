"""ROME at work: the published rule, with the published mixture of keys."""

from __future__ import annotations

import torch
from torch import Tensor

from lifelong_edit.bench import Bench
from lifelong_edit.editors.locate.editor import LocateEditor, Met, fix, require, usual
from lifelong_edit.numerics.located import rank_one
from lifelong_edit.numerics.lowrank import Gram

__all__ = ["Rome", "fix", "make", "require", "usual"]


class Rome(LocateEditor):
    """L = uᵀ/(k₀uᵀ), u = k̄C₀⁻¹, for the output of one matrix.

    k̄ is the mean over contexts and k₀ the key in the prompt, as published. That they differ is why the shift of some
    facts grows without bounds (Gupta et al., arXiv 2403.07175): `r-rome` has one key.
    """

    alone, evenly, at_block = True, True, False

    def influence(self, met: Met) -> Tensor:
        """L (d_in, 1) of the fact."""
        return rank_one(met.mean, met.plain, self.turned(met))

    def turned(self, met: Met) -> Gram:
        """C₀, or the identity for a rule that takes keys as they are, (d_in, d_in) float64."""
        if self.constants.metric == "text":
            return self.metric(met.module)
        return torch.eye(met.mean.shape[1], dtype=met.mean.dtype, device=met.mean.device)


def make(bench: Bench) -> Rome:
    """The rule with what it fixed at `init`."""
    return Rome(bench)
