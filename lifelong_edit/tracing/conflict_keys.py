"""Keys by which facts are told apart and contradictions found: the lowest that no edit has moved."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lifelong_edit.models import BASE, Encoded, LoadedModel, by_length
from lifelong_edit.tasks import task_of
from lifelong_edit.tracing.trace import in_order_of_items


class _Reached(Exception):
    """The module was reached: the layers above are not needed."""


def lowest_keys(loaded: LoadedModel, prompts: Sequence[Sequence[int]], micro_batch: int) -> Tensor:
    """Key of the conflict module at each prompt's last token and the base weights, (n, d_in) float32.

    So it is the same at every state.
    """
    if loaded.modules[0] == loaded.conflict_module:
        return _last_keys(loaded, prompts, micro_batch)  # nothing beneath it is edited
    with loaded.at(BASE):
        return _last_keys(loaded, prompts, micro_batch)


def _last_keys(loaded: LoadedModel, prompts: Sequence[Sequence[int]], micro_batch: int) -> Tensor:
    task, module = task_of(loaded), loaded.conflict_module
    batches = list(by_length([len(p) for p in prompts], micro_batch))
    found: list[Tensor] = []

    def stop(_: torch.nn.Module, arguments: tuple[Tensor, ...]) -> None:
        found.append(arguments[0])
        raise _Reached

    def work(chosen: list[int]) -> Tensor:
        batch = task.collate(loaded, [Encoded.of(prompts[i]) for i in chosen])
        with torch.no_grad():
            try:
                task.logits(loaded, batch)
            except _Reached:
                states = found.pop()
        # OPT's MLP sees (b·t, d).
        states = states.reshape(*batch.tokens(module.positions).shape, -1)
        ends = task.ends(batch, module.positions).to(states.device)
        return states[torch.arange(len(chosen), device=states.device), ends].float().to(loaded.device)

    handle = loaded.model.get_submodule(module.name).register_forward_pre_hook(stop)
    try:
        keys = loaded.world.each(batches, work)
    finally:
        handle.remove()
    return in_order_of_items(keys, batches)


def centred(keys: Tensor, mean: Tensor) -> Tensor:
    """Keys (n, d_in) minus the mean fixed at `init`, each of length one."""
    return torch.nn.functional.normalize(keys - mean, dim=-1)
