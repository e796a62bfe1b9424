"""What the MLP of a layer reads: the states by which a gate tells its subject, at chosen tokens or at all of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lifelong_edit.errors import UnknownModelError
from lifelong_edit.models import Encoded, LoadedModel, TokenBatch, by_length
from lifelong_edit.models.families import Positions, is_linear, shape_of
from lifelong_edit.tasks import Task, task_of

GATE, UP = "gate_proj", "up_proj"
"""Names in an MLP whose first half is two matrices."""
FUSED = ("gate_up_proj", "Wi")
"""Names of a matrix that is both of them, one above the other."""
Where = Positions | Literal["everywhere", "elsewhere"]
"""Tokens of a text: those at which modules are edited, all, or all but those where an answer is given."""


def reader_of(model: Any, output: str) -> str:
    """The matrix beside an MLP's output projection that reads what the MLP is given: its gate, or its first matrix.

    Beside it, or in a part of the layer of its own, as in BERT and its kin: the first with the transposed shape.
    Raises UnknownModelError where the output projection has no such neighbour.
    """
    home, _, own = output.rpartition(".")
    inner, width = shape_of(model.get_submodule(output))
    for name, module in model.get_submodule(home).named_children():
        if name != own and is_linear(module) and shape_of(module)[0] == width:
            return f"{home}.{name}" if home else name
    layer = home.rpartition(".")[0]
    for name, module in model.get_submodule(layer).named_modules():
        if layer and is_linear(module) and shape_of(module) == (width, inner):
            return f"{layer}.{name}"
    raise UnknownModelError(
        f"found no matrix beside {output} that reads the MLP's {width} inputs, expected one as in an MLP of a known "
        "family; name the output projection of an MLP"
    )


def is_gated(model: Any, output: str) -> bool:
    """Whether an MLP multiplies what its activation gives by a second reading, as SwiGLU does."""
    home = model.get_submodule(output.rpartition(".")[0])
    return any(hasattr(home, name) for name in (GATE, *FUSED))


@contextmanager
def read_by(model: Any, readers: Mapping[str, str]) -> Iterator[dict[str, Tensor]]:
    """Within the context each forward pass leaves what the readers read, (…, d), by the name of the output projection.

    readers: output projection → the matrix that reads.
    """
    states: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            states[name] = arguments[0]

        return hook

    with ExitStack() as stack:
        for name, reader in readers.items():
            stack.callback(model.get_submodule(reader).register_forward_pre_hook(keep(name)).remove)
        yield states


def read(
    loaded: LoadedModel, readers: Mapping[str, str], encoded: Sequence[Encoded], micro_batch: int, where: Where
) -> Iterator[tuple[int, str, Tensor]]:
    """What is read of each text as the model stands: its number, the output projection, (n, d) float32 states."""
    task, last = task_of(loaded), _last(loaded.model, readers)

    def work(chosen: list[int]) -> dict[str, list[Tensor]]:
        batch = task.collate(loaded, [encoded[i] for i in chosen])
        mask = _tokens(task, batch, where)
        with torch.no_grad(), read_by(loaded.model, readers) as states, _stopping_at(last):
            task.read(loaded, batch.ids, batch.mask)
        shaped = {name: state.reshape(*mask.shape, -1) for name, state in states.items()}
        there = {n: mask.to(state.device) for n, state in shaped.items()}
        return {n: [s[at][there[n][at]].float() for at in range(len(chosen))] for n, s in shaped.items()}

    # as many micro-batches at a time as there are processes: what is read of a long text is never held whole
    batches, size = list(by_length([len(e.ids) for e in encoded], micro_batch)), loaded.world.at_once
    for start in range(0, len(batches), size):
        part = batches[start : start + size]
        for chosen, found in zip(part, loaded.world.each(part, work), strict=True):
            for name, states in found.items():
                for i, state in zip(chosen, states, strict=True):
                    yield i, name, state


def _tokens(task: Task, batch: TokenBatch, where: Where) -> Tensor:
    """(b, t) bool, true at the tokens that are asked for."""
    if where == "everywhere":
        return batch.mask.bool()
    if where == "elsewhere":
        return batch.mask.bool() & ~task.slots(batch, "answer")
    return task.slots(batch, where)


class _Seen(Exception):
    """Ends a pass."""


def _last(model: Any, readers: Mapping[str, str]) -> nn.Module:
    """The last of the readers in a pass."""
    found: nn.Module = next(m for name, m in reversed(list(model.named_modules())) if name in readers.values())
    return found


@contextmanager
def _stopping_at(module: nn.Module) -> Iterator[None]:
    """A pass within the context ends where it comes to a module: what comes after it is of no interest."""

    def stop(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        raise _Seen

    handle = module.register_forward_pre_hook(stop)
    try:
        with suppress(_Seen):
            yield
    finally:
        handle.remove()


def states_of(
    loaded: LoadedModel, readers: Mapping[str, str], encoded: Sequence[Encoded], micro_batch: int, where: Where
) -> dict[str, list[Tensor]]:
    """What `read` gives, held together: by output projection, of each text."""
    found: dict[str, list[Tensor]] = {name: [torch.empty(0)] * len(encoded) for name in readers}
    for i, name, states in read(loaded, readers, encoded, micro_batch, where):
        found[name][i] = states
    return found


def stream_scale(loaded: LoadedModel, output: str, encoded: Sequence[Encoded], micro_batch: int, where: Where) -> float:
    """Root mean square of what the layer of an output projection passes on at tokens of texts."""
    layer = re.match(r".*?\.\d+(?=\.)", output)
    task, squares, count = task_of(loaded), 0.0, 0
    held: list[Tensor] = []

    def keep(module: nn.Module, arguments: Any, given: Any) -> None:
        held.append(given if isinstance(given, Tensor) else given[0])

    handle = loaded.model.get_submodule(layer[0] if layer else output).register_forward_hook(keep)
    try:
        for chosen in by_length([len(e.ids) for e in encoded], micro_batch):
            batch = task.collate(loaded, [encoded[i] for i in chosen])
            with torch.no_grad():
                task.read(loaded, batch.ids, batch.mask)
            mask = _tokens(task, batch, where)
            states = held.pop().reshape(*mask.shape, -1)
            states = states[mask.to(states.device)].float()
            squares, count = squares + float(states.square().sum()), count + states.numel()
    finally:
        handle.remove()
    return (squares / max(1, count)) ** 0.5 or 1.0
