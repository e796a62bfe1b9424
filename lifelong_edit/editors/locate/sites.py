"""Where a hidden state is looked at and moved, and the keys of edited matrices at the same tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lifelong_edit.errors import UsageError
from lifelong_edit.models import EditableModule, LoadedModel, by_length
from lifelong_edit.tasks import task_of
from lifelong_edit.tracing.rows import Row
from lifelong_edit.tracing.trace import in_order_of_items

_LAYER = re.compile(r"^(.*?\.\d+)(?=\.|$)")


def block_of(module: EditableModule) -> str:
    """The name of the block that a matrix stands in: up to the number of its layer.

    Raises UsageError for a matrix that stands in none.
    """
    found = _LAYER.match(module.name)
    if found is None:
        raise UsageError(
            f"module {module.name!r} stands in no numbered layer; expected a name such as model.layers.7.mlp.down_proj"
        )
    return found[1]


@dataclass(frozen=True)
class Site:
    """The module whose output is looked at and moved: a block, or an edited matrix itself."""

    name: str

    @contextmanager
    def watched(self, model: Any, see: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
        """Within the context `see` gets the output of each pass, and may give another in its place."""

        def hook(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
            states = output[0] if isinstance(output, tuple) else output
            changed = see(states)
            if changed is None:
                return None
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        handle = model.get_submodule(self.name).register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()


class _Reached(Exception):
    """The site was reached: what is above it is not needed."""


@dataclass(frozen=True)
class Reading:
    """What rows show at their anchors. keys: module → (rows, d_in) float32, each at its desk (`LoadedModel.desk`).

    states: (rows, d) float32 at the site.
    """

    keys: dict[str, Tensor]
    states: Tensor


def cut(row: Row) -> Row:
    """The row up to its anchor: what follows has no say in what a decoder holds there."""
    end = row.encoded.subject[1]
    return replace(row, encoded=replace(row.encoded, ids=row.encoded.ids[:end], answer_start=end))


def read(loaded: LoadedModel, rows: Sequence[Row], site: Site, micro_batch: int, *names: str) -> Reading:
    """Keys of edited matrices, and states at a site, at the anchors of rows, at the model's present weights.

    names: of the matrices whose keys are wanted; none named are all.
    """
    task, short, wanted = task_of(loaded), [cut(row) for row in rows], names or [m.name for m in loaded.modules]

    def work(chosen: list[int]) -> tuple[dict[str, Tensor], Tensor]:
        batch = task.collate(loaded, [short[i].encoded for i in chosen])
        at = batch.subjects[:, 1] - 1
        keys, states = dict[str, Tensor](), list[Tensor]()

        def seen_at(seen: Tensor) -> Tensor:
            # OPT's MLP sees (b·t, d).
            states = seen.detach().reshape(*batch.ids.shape, -1)
            return states[torch.arange(len(chosen), device=states.device), at.to(states.device)].float()

        def keep(name: str) -> Callable[[Tensor], None]:
            return lambda seen: keys.update({name: seen_at(seen).to(loaded.desk(name))})

        with torch.no_grad(), ExitStack() as stack:
            for name in wanted:
                module = loaded.model.get_submodule(name)
                stack.callback(module.register_forward_pre_hook(_first(keep(name))).remove)
            stack.enter_context(
                site.watched(loaded.model, _last(lambda seen: states.append(seen_at(seen).to(loaded.device))))
            )
            with suppress(_Reached):
                task.read(loaded, batch.ids, batch.mask)
        return keys, states[0]

    batches = list(by_length([len(row.encoded.ids) for row in short], micro_batch))
    found = loaded.world.each(batches, work)
    read_at = {name: in_order_of_items([keys[name] for keys, _ in found], batches) for name in wanted}
    return Reading(read_at, in_order_of_items([states for _, states in found], batches))


def _first(see: Callable[[Tensor], None]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    return lambda module, arguments: see(arguments[0])


def _last(see: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
    def reach(states: Tensor) -> None:
        see(states)
        raise _Reached

    return reach
