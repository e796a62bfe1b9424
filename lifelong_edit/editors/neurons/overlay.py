"""A model with neurons that it did not have: beside what an MLP gives, Σ ramp(x · gate) · value."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lifelong_edit.editors.neurons.grown import Grown
from lifelong_edit.editors.neurons.reading import read_by, reader_of
from lifelong_edit.editors.neurons.widening import widened
from lifelong_edit.models import LoadedModel


@dataclass(frozen=True)
class Neurons:
    """The overlay of the rule: base weights, and grown MLPs by the name of their output projection.

    Several may be grown at one place, one after the other: those that are there, and those that are being searched for.
    """

    grown: Sequence[tuple[str, Grown]]
    shifts: Mapping[str, Tensor] = field(default_factory=dict)

    @contextmanager
    def attach(self, model: Any) -> Iterator[None]:
        """Within the context every grown MLP gives what its new neurons add."""
        names = dict.fromkeys(name for name, _ in self.grown)
        with ExitStack() as stack:
            states = stack.enter_context(read_by(model, {name: reader_of(model, name) for name in names}))
            for name, grown in self.grown:
                hook = model.get_submodule(name).register_forward_hook(_adding(states, name, grown))
                stack.callback(hook.remove)
            yield

    def as_model(self, loaded: LoadedModel) -> LoadedModel:
        """The same without hooks: its MLPs made wider, see `widening.widened`."""
        return widened(loaded, self.grown)


def _adding(
    states: Mapping[str, Tensor], name: str, grown: Grown
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def add(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        # In full precision whatever the pass is in: a gate tells states apart that bfloat16 would round together.
        with torch.autocast(output.device.type, enabled=False):
            opened = grown.amplitude(states[name].reshape(*output.shape[:-1], -1))
            return output + (opened @ grown.value).to(output.dtype)

    return add
