"""A model with an edit in place that is still being looked for: W₀ + ΔW, and beside it UD with D as variables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Adapted:
    """An overlay (`models.Overlay`): y = k(W₀ + ΔW) + (kU)D, through which gradients reach D.

    shifts: ΔW by module, (d_in, d_out). left: U by module, (d_in, n). right: D by module, (n, d_out), on the device.
    """

    shifts: Mapping[str, Tensor]
    left: Mapping[str, Tensor]
    right: Mapping[str, Tensor]

    @contextmanager
    def attach(self, model: Any) -> Iterator[None]:
        """Within the context every module of `left` adds (kU)D to what it gives."""
        with ExitStack() as stack:
            for name, left in self.left.items():
                handle = model.get_submodule(name).register_forward_hook(_adding(left, self.right[name]))
                stack.callback(handle.remove)
            yield


def _adding(left: Tensor, right: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def add(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        keys = arguments[0]
        return output + ((keys @ left.to(keys.dtype)) @ right.to(keys.dtype)).to(output.dtype)

    return add
