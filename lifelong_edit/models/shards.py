"""Models spread over the processes of a world by PyTorch's FSDP2: each holds a shard of every layer.

A layer is gathered for as long as a pass goes through it. What is edited is whole in each process, so that all that is
done to it stays what it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import warnings
from collections import Counter, defaultdict
from collections.abc import Collection
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lifelong_edit.errors import UsageError
from lifelong_edit.models.families import Kind
from lifelong_edit.models.placement import CPU, blocks_of, names_of, whole
from lifelong_edit.world import World

_MMAP_THRESHOLD, _LARGE = -3, 2**18
"""Of `mallopt`: from how many bytes on a piece of memory is one of its own."""


def require_shardable(kind: Kind, source: str) -> None:
    """Raise UsageError for a model that would not come to the digests of one process.

    The gradients of what an encoder read come from each layer of the decoder, and FSDP2 has those of a layer added up
    first.
    """
    if kind == "seq2seq":
        raise UsageError(
            f"{source!r} is an encoder-decoder, whose gradients are added up in another order in shards; expected a "
            "decoder or an encoder: use another device, or a device map (--device map.json)"
        )


def shard(bare: Any, source: Any, edited: Collection[str], world: World, place: torch.device) -> None:
    """Give a model without weights those of another, in all processes of a world, each its shard.

    Part by part: whole in a process are the tensors of one part, and then only what it holds for good.

    bare: the model, on `meta`. source: the model with its weights, which may be on the disk; in process 0 alone.
    edited: names of the parameters that stay whole in each process. place: where this process holds its shards.
    """
    from torch.distributed.fsdp import fully_shard

    from lifelong_edit.world.many import SharedWorld

    assert isinstance(world, SharedWorld)  # of one process nobody makes shards
    # What a model returns may be a view; nobody writes to it.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    if place.type == CPU:
        give_back_at_once()
    mesh = world.mesh(place.type)
    _bring_buffers(bare, source, world, place)
    names = {bare.get_parameter(name): name for name in names_of(bare)}
    homes = defaultdict[nn.Parameter, list[tuple[nn.Module, str]]](list)
    for module in bare.modules():
        for leaf, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            homes[parameter].append((module, leaf))
    whole_ones, kept = {bare.get_parameter(name) for name in edited}, set[nn.Parameter]()
    for part in [*reversed(parts_of(bare)), bare]:
        for parameter in [p for p in part.parameters() if p.is_meta]:
            value = world.lead(partial(whole, source, names[parameter]))
            made = nn.Parameter(_brought(value, place), requires_grad=False)
            for module, leaf in homes[parameter]:
                setattr(module, leaf, made)
            if parameter in whole_ones:
                kept.add(made)
        fully_shard(part, mesh=mesh, reshard_after_forward=True, ignored_params=kept)
        # Into what the first gathering makes all later ones write: made in inference mode it could not be written to
        # outside of it.
        part.unshard()
        part.reshard()


def give_back_at_once() -> None:
    """Have the C library give large pieces of memory back as soon as they are freed, where it is glibc.

    By itself it keeps pieces of up to 32 MiB once it has seen some freed, in a heap that what is gathered and freed
    layer by layer tears apart: it grew beyond the whole model.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another library, or none that can be asked
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE)


def parts_of(model: Any) -> list[nn.Module]:
    """The parts of a model that are gathered one by one: its layers, as far as they share no weights with others."""
    used = Counter(p for module in model.modules() for p in module.parameters(recurse=False))
    return [block for _, block in blocks_of(model) if all(used[p] == 1 for p in block.parameters())]


def _bring_buffers(bare: Any, source: Any, world: World, place: torch.device) -> None:
    for name, _ in list(bare.named_buffers(remove_duplicate=False)):
        home, _, leaf = name.rpartition(".")
        found = world.lead(partial(_buffer, source, name))
        bare.get_submodule(home)._buffers[leaf] = _brought(found, place)


def _buffer(model: Any, name: str) -> Tensor:
    found: Tensor = model.get_buffer(name)
    return found


def _brought(tensor: Tensor, place: torch.device) -> Tensor:
    # a copy: it may be a view of a file, or of what came from another process
    return tensor.detach().to(place, copy=True).contiguous()
