"""What hypernetworks are made of: residual blocks of low rank, and a normaliser that moves."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from lifelong_edit.editors.ultraedit.moments import Normaliser

Form = Literal["joint", "published", "mend", "rledit", "serac"]
"""What a network asks for, and in which solve: MALMEN's two, MEND's, RLEdit's. SERAC's ask for nothing, but read."""


class Block(nn.Module):
    """A residual block of low rank with scale and shift per layer, the identity at the start.

    published, rledit: y + scale_l · relu(yAB + b) + shift_l, as MALMEN; joint: y + scale_l · (relu(yA + b)B) + shift_l,
    whose output is not confined to one sign per coordinate; mend: y + relu(scale_l · (yAB + b) + shift_l), as MEND.
    """

    def __init__(self, width: int, rank: int, layers: int, form: Form) -> None:
        super().__init__()
        self.form = form
        self.a = nn.Parameter(torch.randn(width, rank) / math.sqrt(width))
        self.b = nn.Parameter(torch.zeros(rank, width))
        self.bias = nn.Parameter(torch.zeros(rank if form == "joint" else width))
        self.scale = nn.Parameter(torch.ones(layers, width))
        self.shift = nn.Parameter(torch.zeros(layers, width))

    def forward(self, y: Tensor, layer: int) -> Tensor:
        """y: (n, d_in + d_out); layer: index among the layers of this shape."""
        # clamp and not relu: its gradient at exactly zero is one, and with B = 0 all of them are zero.
        if self.form == "mend":
            return y + (self.scale[layer] * (y @ self.a @ self.b + self.bias) + self.shift[layer]).clamp(min=0)
        if self.form == "joint":
            change = (y @ self.a + self.bias).clamp(min=0) @ self.b
        else:
            change = (y @ self.a @ self.b + self.bias).clamp(min=0)
        return y + self.scale[layer] * change + self.shift[layer]


class Running(nn.Module):
    """Count, mean and summed squares of the rows [k; g] that came by in training, (width,) float64."""

    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        for name, shape in (("count", ()), ("mean", (width,)), ("squares", (width,))):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    @property
    def normaliser(self) -> Normaliser:
        """The moments so far; before there are two rows nothing is moved or scaled."""
        if self.count < 2:
            return Normaliser(self.count.new_tensor(2.0), torch.zeros_like(self.mean), torch.ones_like(self.squares))
        return Normaliser(self.count, self.mean, self.squares)

    def take(self, keys: Tensor, gradients: Tensor) -> None:
        """Move by rows (n, d_in) and (n, d_out)."""
        own = Normaliser.of(keys, gradients)
        one = Normaliser(self.count.cpu(), self.mean.cpu(), self.squares.cpu()).joined(own)
        self.count.copy_(one.count)
        self.mean.copy_(one.mean)
        self.squares.copy_(one.squares)

    def kept(self, name: str) -> dict[str, np.ndarray]:
        """The moments as a part of a state has them, under a name."""
        return Normaliser(self.count.cpu(), self.mean.cpu(), self.squares.cpu()).arrays(name)
