"""Gates: of each fact a linear reading of a layer's state that is 1 at its subject and −1 at everything else.

What an MLP reads is normalised, and some direction of it is the same at every token: so a reading without a constant
can be 1 here and −1 there. One ridge regression gives it: on ordinary text and preserved prompts −1 is wanted, whose
normal equations are fixed at `init`; at the fact's own prompts, behind contexts, in each form, 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Shut:
    """Where gates are shut, as normal equations: gram Σ w xᵀx (d, d), total Σ w x (d,), float64."""

    gram: Tensor
    total: Tensor

    @classmethod
    def none(cls, width: int) -> Shut:
        """Of no states yet."""
        return cls(torch.zeros(width, width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64))

    def beside(self, states: Tensor, weight: float, depth: float = 1.0) -> Shut:
        """With further states (n, d), each with `weight`, at which −`depth` is wanted."""
        exact = states.to(self.gram)
        return Shut(self.gram + weight * exact.T @ exact, self.total + weight * depth * exact.sum(0))


class Regression:
    """The regression for one layer, factored once for all facts. ridge: λ as a share of the gram's mean diagonal."""

    def __init__(self, shut: Shut, ridge: float) -> None:
        gram = shut.gram.clone()
        gram.diagonal().add_(ridge * float(gram.trace()) / len(gram))
        self._root = torch.linalg.cholesky(gram)
        self._closed = -torch.cholesky_solve(shut.total[:, None], self._root)

    def constant(self) -> Tensor:
        """u (d,) float32: xu is near 1 for all x that are shut out, that is for whatever the layer reads."""
        return -self._closed[:, 0].float()

    def gate(self, states: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
        """g (d,) float32: xg is near −1 on what is shut, near `wanted` (n,) at `states` (n, d), by `weight` (n,)."""
        own = states.to(self._root)
        reach = torch.cholesky_solve(own.T, self._root)
        inner = own @ reach
        inner.diagonal().add_(1 / weight.to(inner))
        missing = wanted.to(own)[:, None] - own @ self._closed
        solved: Tensor = torch.linalg.solve(inner, missing)
        return (self._closed + reach @ solved)[:, 0].float()


def gates_of(
    regression: Regression, own: Sequence[Tensor], apart: Sequence[Tensor], weights: tuple[float, float]
) -> Tensor:
    """The gates of facts, (n, d) float32. own: states of each (m, d); apart: those at which it has to be shut.

    weights: of each state of either kind.
    """
    found = []
    for states, others in zip(own, apart, strict=True):
        wanted = torch.cat([torch.ones(len(states)), -torch.ones(len(others))])
        weight = torch.where(wanted > 0, *weights)
        found.append(regression.gate(torch.cat([states, others.to(states)]), wanted, weight))
    return torch.stack(found)
