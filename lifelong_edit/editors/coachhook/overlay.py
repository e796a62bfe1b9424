"""Hooks that step in where a token stands out: there the edited copy of a matrix speaks, elsewhere the matrix itself.

How much the copy would change a token's output is compared with the tokens of its text so far, by running sums. So what
is decided of a token depends on nothing that comes after it and on no padding: a text that is written token by token
with a cache is the same as one that is read, alone or among others. (The published code standardises over the whole
input, padding included, and within a cache over the one token of a step, where nothing ever stands out.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lifelong_edit.models import Passes
from lifelong_edit.numerics.devices import to_solve


@dataclass
class Running:
    """Count, sum and sum of squares of the sizes seen so far in each of b texts, (b,) float64; none at first."""

    sums: tuple[Tensor, Tensor, Tensor] | None = None

    def scores(self, sizes: Tensor, mask: Tensor) -> Tensor:
        """By how many standard deviations (unbiased) each size differs from the mean so far, itself included: (b, t).

        sizes: (b, t) float64; mask: (b, t), false at padding, which counts nowhere. −∞ at padding, and where nothing
        can stand out: at a first token, and while all are equal.
        """
        kept = torch.where(mask, sizes, 0.0)
        seen = (mask.to(sizes), kept, kept.square())
        before = self.sums or tuple(torch.zeros_like(part[:, 0]) for part in seen)
        count, total, square = (b[:, None] + part.cumsum(1) for b, part in zip(before, seen, strict=True))
        self.sums = (count[:, -1], total[:, -1], square[:, -1])
        mean = total / count
        variance = (square - count * mean.square()) / (count - 1)
        alike = ~mask | (count < 2) | ~(variance > FLAT * mean.square())
        return torch.where(alike, -torch.inf, (sizes - mean) / variance.clamp_min(0).sqrt())


SLACK = 1e-3
"""By how much a score may fall short: that of a fact's own prompt rounds otherwise among others, and has to reach."""
FLAT = 1e-12
"""Of a variance relative to the squared mean, below which it is the rounding of sizes that are equal."""


@dataclass(frozen=True)
class Hook:
    """One matrix's. shift: (d_in, d_out) float32 on the device, by which the copy differs from the matrix.

    alpha: from which score on the copy speaks; None: at every token.
    """

    module: str
    shift: Tensor
    alpha: float | None


@dataclass(frozen=True)
class Hooked:
    """The overlay of the rule: base weights and hooks."""

    hooks: Sequence[Hook]
    shifts: Mapping[str, Tensor] = field(default_factory=dict)

    @contextmanager
    def attach(self, model: Any) -> Iterator[None]:
        """Hook the matrices, and the model, which says where a text begins and which positions are padding."""
        passes = Passes()
        handles = [model.register_forward_pre_hook(passes.begin, with_kwargs=True)]
        handles += [model.get_submodule(h.module).register_forward_hook(_speaking(h, passes)) for h in self.hooks]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def sizes_of(keys: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """What a copy would change at keys (b, t, d_in): itself (b, t, d_out) float32, and its size (b, t) float64."""
    moved = keys.float() @ shift
    return moved, to_solve(moved.norm(dim=-1))


def _speaking(hook: Hook, passes: Passes) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    running = Running()

    def speak(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        nonlocal running
        # OPT's MLP sees (b·t, d).
        moved, sizes = sizes_of(arguments[0].reshape(*passes.mask.shape, -1), hook.shift)
        if hook.alpha is not None:
            if passes.begins:
                running = Running()
            opened = running.scores(sizes.detach(), passes.mask.to(sizes.device)) >= hook.alpha - SLACK
            moved = torch.where(opened.to(moved.device)[..., None], moved, 0.0)
        return output + moved.to(output.dtype).reshape(output.shape)

    return speak
