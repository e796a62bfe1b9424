"""Models over several devices by accelerate's device maps: what may stand in one, and where it leads.

What runs a model that is spread so are accelerate's hooks: each layer fetches its inputs, and where its weights lie on
the disk it reads them for as long as it runs. A matrix that is edited never does: its weights change in place.
"""

from __future__ import annotations

import importlib.util
import json
import re
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lifelong_edit.errors import UsageError
from lifelong_edit.models.families import EditableModule
from lifelong_edit.numerics.devices import resolve_device
from lifelong_edit.numerics.textgram import RANK, rank_for
from lifelong_edit.settings import SHARDED, is_map

AUTO, CPU, DISK = "auto", "cpu", "disk"
Map = dict[str, int | str]
"""Where each part of a model is, by the part's name: the number of a card, "mps", "cpu" or "disk"."""
FILLED = 0.9
"""The share of an accelerator's free memory that weights may take beside `room_for`: the rest is for activations."""


def where_tokens_go(device: str | torch.device) -> torch.device:
    """The device on which a model takes its inputs and gives its outputs: of a map its first accelerator, else the CPU.

    Of shards it is the process's own accelerator, or without one the CPU.
    device: as `load_model` takes it. Raises UsageError for a device that is not there, and a file that is no map.
    """
    if is_map(str(device)):
        return _first(read_map(str(device)).values())
    return resolve_device(AUTO if str(device) == SHARDED else device)


def read_map(path: str) -> Map:
    """A map as a file has it: a JSON object of names of modules and devices.

    Raises UsageError where it is none, and where a device is not there.
    """
    try:
        told = json.loads(Path(path).expanduser().read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"found no device map at {path!r} ({type(error).__name__}), expected a JSON file; say where it is, or "
            "another device, by --device"
        ) from None
    if not isinstance(told, dict) or not told:
        raise UsageError(f'{path} is no device map; expected a JSON object as {{"": "cuda:0", "lm_head": "disk"}}')
    return {name: _place(name, value, path) for name, value in told.items()}


def _place(name: str, value: Any, path: str) -> int | str:
    if value in (CPU, DISK):
        return str(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UsageError(f"{path} puts {name!r} at {value!r}; expected a device as cuda:1 or cpu, or disk")
    return _number(resolve_device(f"cuda:{value}" if isinstance(value, int) else value))


def _number(device: torch.device) -> int | str:
    # Cards by number, as accelerate names them itself: of a set of texts each process would take another one as first.
    return (device.index or 0) if device.type == "cuda" else device.type


def _first(places: Iterable[int | str]) -> torch.device:
    """Where accelerate lets everything run that is kept on the CPU or the disk."""
    found = list(set(places) - {CPU, DISK})  # in its own words, so that it is the same one
    return torch.device(CPU if not found else found[0] if isinstance(found[0], str) else f"cuda:{found[0]}")


def may_be_spread(device: str) -> bool:
    """Whether a model may be loaded by a map there: `map_for` says which.

    Raises UsageError for a map without accelerate, which "auto" does without.
    """
    there = importlib.util.find_spec("accelerate") is not None
    if is_map(device) and not there:
        raise UsageError("device maps need accelerate, which is not installed; pip install 'lifelong-edit[devices]'")
    return is_map(device) or (device == AUTO and there)


def map_for(device: str, bare: Any, edited: Sequence[EditableModule], dtype: torch.dtype) -> Map | None:
    """The map by which a model is loaded; None where it goes to one device as a whole.

    bare: the model, on `meta`. edited: its matrices that are edited. Raises UsageError as `settled` does.
    """
    if device == AUTO:
        return made_for(bare, edited, dtype)
    return settled(read_map(device), bare, edited, device)


# -- what a map means for a model


def settled(given: Mapping[str, int | str], bare: Any, edited: Sequence[EditableModule], path: str) -> Map:
    """A map that names every part of a model once, as coarse as it can be.

    given: as `read_map` reads it; a part that it does not name is where the nearest one around it is. bare: the model,
    which may be on `meta`. edited: its matrices that are edited.
    Raises UsageError, naming the module and what to do, for names that the model does not have, parts without a place,
    edited matrices that would be nowhere, tied weights that would be apart, and a layer on two devices.
    """
    known = {name for name, _ in bare.named_modules()}
    for name in given:
        if name not in known:
            raise UsageError(
                f"{path} names {name!r}, which the model does not have; it has {', '.join(_parts(bare))}, and what is "
                "inside of them"
            )
    of = {name: _place_of(name, given, path) for name, _ in _tensors(bare)}
    first = _first(given.values())
    for module in edited:
        _require_real(module.name, of[f"{module.name}.weight"], first, path)
    for name, source in ties_of(bare).items():
        if of[name] != of[source]:
            raise UsageError(
                f"{path} puts {name} at {_said(of[name])} and {source}, with which it is one, at {_said(of[source])}; "
                "give both one place"
            )
    for name, block in blocks_of(bare):
        runs = {_runs_on(of[f"{name}.{own}"], first) for own, _ in _tensors(block)}
        if len(runs) > 1:
            raise UsageError(
                f"{path} lets {name} run on {' and '.join(sorted(map(str, runs)))}; a layer runs on one device: name "
                "it as a whole"
            )
    return dict(_coarsest(bare, "", of, path))


def _parts(bare: Any) -> list[str]:
    """Names of parts of a model that a map might name, one of each kind."""
    kinds = {re.sub(r"\d+", "#", name): name for name, module in bare.named_modules() if name.count(".") < 3 and name}
    return sorted(kinds.values())[:6]


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _place_of(name: str, given: Mapping[str, int | str], path: str) -> int | str:
    around = name
    while around:
        around = around.rpartition(".")[0]
        if around in given:
            return given[around]
    raise UsageError(f'{path} has no place for {name}; name it, or with an empty name ("") all that it does not name')


def _require_real(name: str, place: int | str, first: torch.device, path: str) -> None:
    if place == DISK:
        raise UsageError(
            f"{path} puts {name}, which is edited, on the disk, where its weights cannot change; put it on {first}, or "
            "edit others (--modules)"
        )
    if place == CPU and first.type != CPU:
        raise UsageError(
            f"{path} puts {name}, which is edited, on the CPU beside {first}, which would get a copy for each pass; "
            f"put it on {first}, or edit others (--modules)"
        )


def _runs_on(place: int | str, first: torch.device) -> torch.device:
    return first if place in (CPU, DISK) else _first([place])


def _said(place: int | str) -> str:
    return place if isinstance(place, str) else f"cuda:{place}"


def _coarsest(module: nn.Module, name: str, of: Mapping[str, int | str], path: str) -> Iterator[tuple[str, int | str]]:
    inside = {of[f"{name}.{own}" if name else own] for own, _ in _tensors(module)}
    if len(inside) == 1:
        yield name, inside.pop()
    elif inside:
        if [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            raise UsageError(
                f"{path} cuts {name or 'the model'} apart, which has weights of its own; name it as a whole"
            )
        for child, part in module.named_children():
            yield from _coarsest(part, f"{name}.{child}" if name else child, of, path)


def blocks_of(model: Any) -> list[tuple[str, nn.Module]]:
    """The layers of a model that run on one device each, as transformers names their classes."""
    classes = set(getattr(model, "_no_split_modules", None) or ())
    return [(name, module) for name, module in model.named_modules() if type(module).__name__ in classes]


def ties_of(model: Any) -> dict[str, str]:
    """Names of parameters that are another one → that one's."""
    first: dict[int, str] = {}
    found = {n: first.setdefault(id(p), n) for n, p in model.named_parameters(remove_duplicate=False)}
    return {name: source for name, source in found.items() if name != source}


# -- a map that is made for the machine at hand


def room_for(edited: Sequence[EditableModule], dtype: torch.dtype) -> int:
    """Bytes that edited matrices take beside their weights, roughly: W₀ and W, C₀, and what one solve needs."""
    grams = [8 * m.d_in * (m.d_in if rank_for(m.d_in, None) == 0 else RANK) for m in edited]
    return sum((dtype.itemsize + 4) * m.d_in * m.d_out for m in edited) + sum(grams) + 4 * max(grams, default=0)


def made_for(
    bare: Any,
    edited: Sequence[EditableModule],
    dtype: torch.dtype,
    memory: Mapping[int | str, int] | None = None,
) -> Map | None:
    """A map over the accelerators, the CPU's memory and the disk; None where the model fits on the first device.

    Matrices that are edited are on an accelerator, or without one in memory. bare, edited: as of `settled`. memory:
    free bytes by device, by default those that accelerate finds.
    """
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_max_memory

    free = dict(get_max_memory() if memory is None else memory)
    cards = [place for place in free if place not in (CPU, DISK)]
    room = room_for(edited, dtype)
    for place in cards or [CPU]:
        free[place] = max(0, int(free[place] * FILLED) - room)
    weights = {id(p): p.numel() * dtype.itemsize for p in bare.parameters()}
    if sum(weights.values()) <= free[(cards or [CPU])[0]]:
        return None
    blocks = sorted({type(block).__name__ for _, block in blocks_of(bare)})
    found = infer_auto_device_map(bare, max_memory=free, no_split_module_classes=blocks, dtype=dtype)
    first = _first(cards)
    own: int | str = CPU if first.type == CPU else cards[0]
    chosen: Map = dict(found)
    for module in edited:
        place = _place_of(f"{module.name}.weight", chosen, "auto")
        if place == DISK or (place == CPU and first.type != CPU):
            chosen[module.name] = own
    return settled(chosen, bare, edited, "auto")


# -- a model that is spread


def spread(model: Any) -> Map:
    """The map of a model that runs by accelerate's hooks; empty for one that is in one place."""
    if not (hasattr(model, "_hf_hook") and hasattr(model, "hf_device_map")):
        return {}
    told = {name: f"cuda:{p}" if isinstance(p, int) else str(p) for name, p in model.hf_device_map.items()}
    return {name: place if place == DISK else _number(torch.device(place)) for name, place in told.items()}


def device_of(model: Any) -> torch.device:
    """The device on which a loaded model takes its inputs and gives its outputs."""
    places = spread(model)
    return _first(places.values()) if places else torch.device(model.device)


def scratch(model_options: dict[str, Any]) -> tempfile.TemporaryDirectory[str] | None:
    """A folder for weights that are not on the disk as the model wants them; named in options of `from_pretrained`."""
    if DISK not in model_options["device_map"].values():
        return None
    folder = tempfile.TemporaryDirectory(prefix="lifelong-edit-weights-", ignore_cleanup_errors=True)
    model_options["offload_folder"] = folder.name
    return folder


def keep_with(model: Any, folder: tempfile.TemporaryDirectory[str] | None) -> None:
    """Have a folder go when the model does."""
    if folder is not None:
        weakref.finalize(model, folder.cleanup)


def fetch_inputs(model: Any) -> None:
    """Have layers of which only parts are in the map fetch their inputs as whole ones do: they are added to again."""
    places = spread(model)
    if not places:  # as of all models without accelerate
        return
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    first = _first(places.values())
    for name, block in blocks_of(model):
        inside = [place for part, place in places.items() if part.startswith(f"{name}.")]
        if inside and name not in places:
            skip = getattr(model, "_skip_keys_device_placement", None)
            hook = AlignDevicesHook(execution_device=_runs_on(inside[0], first), skip_keys=skip)
            add_hook_to_module(block, hook, append=True)


def names_of(model: Any) -> list[str]:
    """Names of all parameters in the model's order; one that is tied to another counts once."""
    tied = aliases_of(model)
    return [name for name, _ in model.named_parameters() if name not in tied]


def aliases_of(model: Any) -> dict[str, str]:
    """Names of parameters that are another one → that one's, also where hooks have taken them apart.

    They put another empty parameter in the place of each that they read: what is tied is then known by name alone.
    """
    return dict(model.all_tied_weights_keys) if spread(model) else ties_of(model)


def in_shards(model: Any) -> bool:
    """Whether each of several processes holds a shard of the model."""
    return any(is_shard(parameter) for parameter in model.parameters())


def is_shard(tensor: Tensor) -> bool:
    """Whether a process holds no more than a part of a tensor."""
    return hasattr(tensor, "full_tensor")  # a DTensor, whose module takes long to import


def require_unsharded(model: Any) -> None:
    """Raise UsageError for a model in shards, where all its weights are to be at hand in one process."""
    if in_shards(model):
        raise UsageError(
            "found a model in shards, expected all of its weights in one process to write or to copy it; do so in one "
            "process, where `--device sharded` is the CPU"
        )


def whole(model: Any, name: str) -> Tensor:
    """A parameter by its name, read from where it lies if that is the disk, or memory beside an accelerator.

    Of a model in shards it is gathered, by all processes at once.
    """
    parameter: Any = model.get_parameter(name)
    if is_shard(parameter):
        gathered: Tensor = parameter.detach().full_tensor()
        return gathered
    if parameter.device.type != "meta":
        lying: Tensor = parameter.detach()
        return lying
    home, _, leaf = name.rpartition(".")
    value: Tensor = model.get_submodule(home)._hf_hook.weights_map[leaf]
    return value.detach()


def state_of(model: Any) -> dict[str, Tensor]:
    """The state dict of a model with all its weights in memory, tied ones as one tensor.

    Raises UsageError for a model in shards.
    """
    require_unsharded(model)
    found: dict[str, Tensor] = dict(model.state_dict())
    tied = aliases_of(model) if spread(model) else {}
    for name, tensor in found.items():
        if tensor.device.type == "meta" and name not in tied:
            found[name] = whole(model, name)
    return found | {name: found[source] for name, source in tied.items() if name in found}
