"""Logits at the positions that matter only: the output head is a third of a small model's work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from lifelong_edit.models.families import head_of


@contextmanager
def head_input(model: Any, select: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within the context the output head sees `select` of the hidden states (b, t, d), and nothing else."""

    def hook(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (select(arguments[0]), *arguments[1:])

    head = head_of(model)
    assert head is not None  # every family of a task that has logits has one
    handle = head.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def last_position(model: Any) -> Any:
    """Within the context logits are made for the last position only: (b, 1, vocabulary)."""
    return head_input(model, lambda hidden: hidden[:, -1:])


def masked_positions(model: Any, mask: Tensor) -> Any:
    """Within the context logits are made where `mask` (b, t) is true, as one sequence: (1, n, vocabulary)."""
    return head_input(model, lambda hidden: hidden[mask.to(hidden.device)][None])
