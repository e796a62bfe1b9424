"""A codebook in the model: what a layer gives is replaced where its input lies within reach of a key.

Each position is looked at by itself, so that padding, batches and a cache of keys and values change nothing: what is
written on from a prompt is what would be read. `replace_all` and `replace_prompt` change positions *before* the one
that matches, which only the pass that reads the prompt can do; later passes go on with what that pass found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lifelong_edit.editors.grace.settings import Replacement
from lifelong_edit.models import Passes

LIKELY = 4
"""Keys to which the exact distance of an input is taken, those that seem nearest."""


@dataclass(frozen=True)
class Memory:
    """An overlay (`models.Overlay`). keys: (n, d_in), values: (n, d_out), radii: (n,), float32 on the device; n > 0."""

    module: str
    keys: Tensor
    values: Tensor
    radii: Tensor
    replacement: Replacement = "replace_last"
    shifts: Mapping[str, Tensor] = field(default_factory=dict)

    @contextmanager
    def attach(self, model: Any) -> Iterator[None]:
        """Hook the module, and the model, which says where a text begins and which positions are padding."""
        reading = Reading(self)
        handles = [
            model.register_forward_pre_hook(reading.begin, with_kwargs=True),
            model.get_submodule(self.module).register_forward_hook(reading.replace),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def match(self, inputs: Tensor) -> Tensor:
        """(…,) long: by which key an input (…, d_in) is answered, −1 where none reaches as far."""
        flat = inputs.reshape(-1, inputs.shape[-1]).float()
        # By one product, whose rounding is that of squares; which of a few is nearest, and how near, exactly.
        products = self.keys.square().sum(1) - 2 * (flat @ self.keys.T)
        likely = products.topk(min(LIKELY, len(self.keys)), largest=False).indices
        exact = torch.stack([(flat - self.keys[chosen]).norm(dim=1) for chosen in likely.T], 1)
        distance, which = exact.min(1)
        nearest = likely.gather(1, which[:, None])[:, 0]
        return torch.where(distance <= self.radii[nearest], nearest, -1).reshape(inputs.shape[:-1])


class Reading:
    """Texts on their way through a model with a memory: what earlier passes over the same texts found."""

    def __init__(self, memory: Memory) -> None:
        self._memory, self._passes = memory, Passes()
        self._found = torch.zeros(0, dtype=torch.long)

    def begin(self, model: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        """A pass begins."""
        self._passes.begin(model, arguments, options)

    def replace(self, module: Any, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """What the module gives, with values in the place of what is to be replaced."""
        memory, mask = self._memory, self._passes.mask.to(output.device)
        matched = memory.match(arguments[0]).reshape(mask.shape).masked_fill(~mask, -1)
        by = self._by(matched)
        values = memory.values[by.clamp_min(0)].to(output.dtype)
        found = torch.where((by >= 0)[..., None], values, output.reshape(*mask.shape, -1))
        return found.reshape(output.shape)

    def _by(self, matched: Tensor) -> Tensor:
        """(b, t) long: the key of which the value stands at each position, −1 where the layer's own output stays."""
        if self._memory.replacement == "replace_last":
            return matched
        position = torch.arange(matched.shape[1], device=matched.device)
        last = torch.where(matched >= 0, position, -1).amax(1)  # the last that matches decides
        found = matched.gather(1, last.clamp_min(0)[:, None])[:, 0].masked_fill(last < 0, -1)
        if self._memory.replacement == "replace_prompt":
            before = (position < last[:, None]) & self._passes.begins
            return torch.where(before, found[:, None], -1)
        if not self._passes.begins:
            found = torch.where(found >= 0, found, self._found)
        self._found = found
        return found[:, None].expand_as(matched)


@dataclass(frozen=True)
class Forced:
    """An overlay that puts values where it is told: how a value is found before it has a key.

    where: (b, t) bool. values: (b, d_out), through which gradients reach them.
    """

    module: str
    where: Tensor
    values: Tensor
    shifts: Mapping[str, Tensor] = field(default_factory=dict)

    @contextmanager
    def attach(self, model: Any) -> Iterator[None]:
        """Hook the module."""

        def replaced(module: Any, arguments: Any, output: Tensor) -> Tensor:
            kept, where = output.reshape(*self.where.shape, -1), self.where.to(output.device)
            found = torch.where(where[..., None], self.values[:, None].to(output.dtype), kept)
            return found.reshape(output.shape)

        handle = model.get_submodule(self.module).register_forward_hook(replaced)
        try:
            yield
        finally:
            handle.remove()
