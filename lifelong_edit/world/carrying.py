"""How values get from one process to all others: their tensors as bytes, as they lie in memory, the rest beside them.

A tensor arrives with the strides that it had: a product of matrices may round otherwise where one is laid out
otherwise, and what a process made itself does not travel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_ALIGNED = 64
"""Bytes. Vectorised sums begin at the first aligned number; torch itself aligns what it makes so."""


@dataclass(frozen=True)
class Lying:
    """Where a tensor lies among the bytes: `shape` is that of its memory, `order` the way back to its own."""

    start: int
    shape: tuple[int, ...]
    order: tuple[int, ...]
    dtype: torch.dtype
    device: str

    @property
    def end(self) -> int:
        """The first byte after it."""
        return self.start + math.prod(self.shape) * self.dtype.itemsize


def taken_out(value: Any, tensors: list[tuple[Lying, Tensor]]) -> Any:
    """A value with its tensors, in dicts, lists and tuples, replaced by where they will lie; they are put in a list."""
    if isinstance(value, Tensor):
        return _lay(value.detach(), tensors)
    if type(value) in (list, tuple):
        return type(value)(taken_out(part, tensors) for part in value)
    if type(value) is dict:
        return {name: taken_out(part, tensors) for name, part in value.items()}
    return value


def _lay(tensor: Tensor, tensors: list[tuple[Lying, Tensor]]) -> Lying:
    strides = tensor.stride()
    order = sorted(range(tensor.dim()), key=lambda axis: -strides[axis])
    lying = tensor.permute(order)
    if not lying.is_contiguous():  # has gaps, as a slice does: laid out anew, here as there
        order, lying = list(range(tensor.dim())), tensor.contiguous()
    before = tensors[-1][0].end if tensors else 0
    start = -(-before // _ALIGNED) * _ALIGNED
    back = tuple(sorted(range(len(order)), key=order.__getitem__))
    found = Lying(start, tuple(lying.shape), back, tensor.dtype, tensor.device.type)
    tensors.append((found, lying))
    return found


def as_bytes(tensors: Sequence[tuple[Lying, Tensor]]) -> Tensor:
    """The tensors side by side, (bytes,) uint8 on the CPU."""
    buffer = torch.zeros(tensors[-1][0].end if tensors else 0, dtype=torch.uint8)
    for place, tensor in tensors:
        buffer[place.start : place.end].view(place.dtype).view(place.shape).copy_(tensor)
    return buffer


def put_in(value: Any, buffer: Tensor) -> Any:
    """The inverse of `taken_out`: a value with its tensors, views of the buffer or copies on their device."""
    if isinstance(value, Lying):
        found = buffer[value.start : value.end].view(value.dtype).view(value.shape).permute(value.order)
        return found if value.device == "cpu" else found.to(value.device)
    if type(value) in (list, tuple):
        return type(value)(put_in(part, buffer) for part in value)
    if type(value) is dict:
        return {name: put_in(part, buffer) for name, part in value.items()}
    return value
