"""What neurons that a model did not have are: a ramp each, along which it opens, and what it then adds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grown:
    """The neurons of one MLP. gate: (n, d), value: (n, d_out). Each begins to open at `opens`, is at `width` more.

    level: u (d,), of which xu is near 1 whatever x is: in its units thresholds are, where the MLP has no biases to hold
    them; None where it has. gated: whether what opens is multiplied by a second reading, which is then xu as well. So
    all of it can be written into the matrices of the MLP (`widening`).
    """

    gate: Tensor
    value: Tensor
    opens: float
    width: float
    level: Tensor | None = None
    gated: bool = False

    def amplitude(self, states: Tensor) -> Tensor:
        """How far each neuron is open at states (…, d): (…, n), 0 to about 1."""
        states = states.float()
        one = torch.ones(1, device=states.device) if self.level is None else (states @ self.level)[..., None]
        ramp = (states @ self.gate.T - self.opens * one) / self.width
        found = ramp.relu() - (ramp - one).relu()
        return found * one if self.gated else found
