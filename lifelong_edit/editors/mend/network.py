"""MEND's hypernetwork: a key and a gradient in, another key and another gradient out (arXiv 2110.11309, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lifelong_edit.editors.malmen.blocks import Block, Running


class MendNetwork(nn.Module):
    """One network of a weight shape, shared by the layers of that shape: [k̃; g̃] from normalised [k; g].

    S = η_l Σ k̃ᵀg̃, with η_l = unit_l·factor_l: unit is where training began, factor is learned, and may turn the sign.
    """

    unit: Tensor

    def __init__(self, d_in: int, d_out: int, layers: int, rank: int, blocks: int) -> None:
        super().__init__()
        self.d_in = d_in
        self.blocks = nn.ModuleList(Block(d_in + d_out, rank, layers, "mend") for _ in range(blocks))
        self.factor = nn.Parameter(torch.ones(layers))
        self.register_buffer("unit", torch.ones(layers))
        self.running = Running(d_in + d_out)

    def forward(self, keys: Tensor, gradients: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """k̃ (n, d_in) and η_l g̃ (n, d_out) for keys (n, d_in) and gradients (n, d_out); the normaliser stays."""
        # Modules of one shape share a network, and may be on several devices.
        home, place = keys.device, self.factor.device
        one, keys, gradients = self.running.normaliser, keys.to(place), gradients.to(place)
        y = (torch.cat([keys, gradients], -1) - one.mean.to(keys)) / one.deviation.to(keys)
        for block in self.blocks:
            y = block(y, layer)
        return y[:, : self.d_in].to(home), (self.unit[layer] * self.factor[layer] * y[:, self.d_in :]).to(home)
