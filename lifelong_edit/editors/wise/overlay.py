"""The side memory in the model: from where on in a text it speaks is told by how much it would change so far.

By the mean over the tokens of a text up to the one at hand, by running sums; so padding, batches and a cache change
nothing. (The published router takes the mean over whatever a pass reads: of a text that is generated with a cache, one
token.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lifelong_edit.models import Passes
from lifelong_edit.numerics.devices import to_solve

Activation = Callable[[Tensor], Tensor]
SLACK = 1e-4
"""By what share a mean may fall short: that of a fact's own prompt rounds otherwise among others, and has to reach."""


def activation_of(model: Any) -> Activation:
    """The activation of a model's MLPs by its configuration; none, the identity, where that does not say."""
    from transformers.activations import ACT2FN

    text = model.config.get_text_config()
    names = (getattr(text, name, None) for name in ("hidden_activation", "hidden_act", "activation_function"))
    name = next((name for name in names if isinstance(name, str)), None)
    found: Activation = (lambda states: states) if name is None else ACT2FN[name]
    return found


def distances(act: Activation, given: Tensor, moved: Tensor) -> Tensor:
    """‖act(y + m) − act(y)‖ (…,) float32 at outputs y and what is added to them m, (…, d_out)."""
    given, moved = given.float(), moved.float()
    found: Tensor = (act(given + moved) - act(given)).norm(dim=-1)
    return found


@dataclass
class Means:
    """Count and sum of what was seen so far in each of b texts, (b,) float64; none at first."""

    sums: tuple[Tensor, Tensor] | None = None

    def over(self, values: Tensor, mask: Tensor) -> Tensor:
        """(b, t) float64: the mean of each text up to each token, padding (mask false) left out; −∞ there."""
        seen = (mask.to(values), torch.where(mask, values, 0.0))
        before = self.sums or tuple(torch.zeros_like(part[:, 0]) for part in seen)
        count, total = (b[:, None] + part.cumsum(1) for b, part in zip(before, seen, strict=True))
        self.sums = (count[:, -1], total[:, -1])
        return torch.where(mask, total / count, -torch.inf)


@dataclass(frozen=True)
class Routed:
    """The overlay of the rule. side: (d_in, d_out) float32 on the device, by which the copy differs from the matrix."""

    module: str
    side: Tensor
    threshold: float
    act: Activation
    shifts: Mapping[str, Tensor] = field(default_factory=dict)

    @contextmanager
    def attach(self, model: Any) -> Iterator[None]:
        """Hook the matrix, and the model, which says where a text begins and which positions are padding."""
        passes, means = Passes(), Means()

        def route(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
            nonlocal means
            if passes.begins:
                means = Means()
            # OPT's MLP sees (b·t, d).
            keys, given = (x.reshape(*passes.mask.shape, -1) for x in (arguments[0], output))
            moved = keys.float() @ self.side
            far = to_solve(distances(self.act, given, moved))
            opened = means.over(far, passes.mask.to(far.device)) >= (1 - SLACK) * self.threshold
            added = torch.where(opened.to(moved.device)[..., None], moved, 0.0)
            return output + added.to(output.dtype).reshape(output.shape)

        handles = [
            model.register_forward_pre_hook(passes.begin, with_kwargs=True),
            model.get_submodule(self.module).register_forward_hook(route),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
