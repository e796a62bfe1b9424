"""Muon: momentum whose update is made orthogonal, for the weight matrices inside the transformer's layers.

Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024), Newton-Schulz iteration of
fifth order. On statements of single facts it came as far in 100 steps as AdamW in 400, and that is what makes atlas
cheap to rebuild. (torch has a Muon of its own from 2.9 on; this one also runs on the older versions we support.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


def orthogonal(update: Tensor, *, half: bool) -> Tensor:
    """An update (a, b) with its singular values brought near one; ``half``: products in bfloat16."""
    x = update.bfloat16() if half else update
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    found: Tensor = (x.T if tall else x).to(update.dtype)
    return found


class Muon:
    """Nesterov momentum, made orthogonal, with decoupled weight decay.

    Args:
        parameters: matrices only.
        momentum: share of the average that stays at each step.
        decay: weight decay relative to the rate.
        half: whether the Newton-Schulz products run in bfloat16.
    """

    def __init__(
        self, parameters: Sequence[Parameter], *, momentum: float = 0.95, decay: float = 0.01, half: bool
    ) -> None:
        self._parameters = list(parameters)
        self._averages = [torch.zeros_like(p) for p in self._parameters]
        self._momentum, self._decay, self._half = momentum, decay, half

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move every parameter by its gradient's orthogonalised momentum, and forget the gradients."""
        for parameter, average in zip(self._parameters, self._averages, strict=True):
            if parameter.grad is None:
                continue
            average.lerp_(parameter.grad, 1 - self._momentum)
            update = orthogonal(parameter.grad.lerp(average, self._momentum), half=self._half)
            shape = max(1.0, parameter.shape[0] / parameter.shape[1]) ** 0.5
            parameter.mul_(1 - rate * self._decay).add_(update, alpha=-rate * shape)
            parameter.grad = None
