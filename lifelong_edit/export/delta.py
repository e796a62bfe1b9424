"""The format `delta`: the change alone, with the fingerprint of the model that it is of, and how it comes on again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lifelong_edit.errors import LifelongEditError, UsageError
from lifelong_edit.export.formats import export
from lifelong_edit.export.places import PROVENANCE
from lifelong_edit.export.placing import loader_of
from lifelong_edit.models import EditableModule, LoadedModel, Shifts, load_model

DELTA, SCRIPT = "delta.safetensors", "apply.py"
_WEIGHT = ".weight"


def write_delta(loaded: LoadedModel, shifts: Mapping[str, Tensor], folder: Path) -> dict[str, Any]:
    """Write ΔW in float32, and a script that adds it to the base without this program; what loads the base.

    A tensor has the name and the shape of the parameter that it is added to; it is added in float32 and rounded once to
    the model's dtype, as `models.compose` does, so that what comes of it is the state to the bit. Modules that nothing
    has changed are left out. Raises OSError or SafetensorError.
    """
    changes = {
        f"{name}{_WEIGHT}": _stored(loaded.module(name), shift.detach().cpu().float()).contiguous()
        for name, shift in shifts.items()
        if bool(shift.any())
    }
    save_file(changes, folder / DELTA, metadata={"base_fingerprint": loaded.fingerprint})
    shutil.copyfile(str(files("lifelong_edit.export") / "apply_delta.py"), folder / SCRIPT)
    return {"model_class": type(loaded.model).__name__, "loader": loader_of(loaded)}


def apply(
    folder: Path,
    out: Path,
    *,
    model: str | None = None,
    force: bool = False,
    dtype: str | None = None,
    max_shard_size: str | None = None,
) -> dict[str, Any]:
    """Put an exported delta on its base, and write the whole as `export` does; what the delta says of itself.

    model: where the base lies, by default where it did when the delta was made. Raises UsageError where `folder` holds
    no delta, LifelongEditError where it is damaged, ModelMismatchError where the model is another one, and what loading
    and exporting raise.
    """
    told, changes = read_delta(folder)
    source = told["base"]["source"] if model is None else model
    names = [name.removesuffix(_WEIGHT) for name in changes]
    loaded = load_model(source, modules=names or None, dtype=told["dtype"])
    loaded.require_fingerprint(told["base"]["fingerprint"])
    shifts = {name: _stored(loaded.module(name), changes[f"{name}{_WEIGHT}"]).contiguous() for name in names}
    origin = {name: told[name] for name in ("step", "weights_digest", "live_digest", "live_facts") if name in told}
    options: dict[str, Any] = {"dtype": dtype, "max_shard_size": max_shard_size, "provenance": origin}
    export("transformers", loaded, Shifts(shifts), out, force=force, **options)
    return told


def read_delta(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a delta says of itself, and its tensors by parameter. Raises UsageError or LifelongEditError as `apply`."""
    if not (folder / DELTA).is_file() or not (folder / PROVENANCE).is_file():
        raise UsageError(
            f"found no {DELTA} with {PROVENANCE} in {folder}, expected a folder that `export --format delta` wrote"
        )
    try:
        told = json.loads((folder / PROVENANCE).read_bytes())
        changes = load_file(folder / DELTA)
        told["base"]["fingerprint"], told["base"]["source"], told["dtype"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise LifelongEditError(f"the delta in {folder} is damaged ({error}); export it again") from error
    return told, changes


def _stored(module: EditableModule, matrix: Tensor) -> Tensor:
    """(d_in, d_out) as the model stores it, or back."""
    return matrix if module.orientation == "conv1d" else matrix.T
