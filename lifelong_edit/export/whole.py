"""The format `transformers`: a folder that `from_pretrained` loads and that answers the same."""

from __future__ import annotations

import contextlib
import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import cached_file

from lifelong_edit.errors import LifelongEditError
from lifelong_edit.export.placing import meant_fingerprint, weights_meant
from lifelong_edit.models import LoadedModel, fingerprint_of
from lifelong_edit.models.placement import spread, state_of
from lifelong_edit.models.places import locate
from lifelong_edit.models.quiet import quiet_transformers

# Small files of a base that neither the model nor the tokenizer writes: what turns pictures and sound into inputs.
PASSENGERS = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
    "chat_template.jinja",
)


def write_transformers(
    loaded: LoadedModel,
    shifts: Mapping[str, Tensor],
    folder: Path,
    dtype: torch.dtype | None = None,
    max_shard_size: str = "50GB",
) -> None:
    """Write the model with weights W₀ + ΔW, its tokenizer and generation settings as a transformers folder.

    shifts: module name → ΔW (d_in, d_out) float32; what `loaded`'s own shifts are does not matter. dtype: of the
    weights, which are safetensors; by default that which the base model was loaded in. max_shard_size: of a file of
    weights, as "2GB"; larger ones are cut, with an index beside them. What was written is read back, and is what was
    meant. Raises OSError or SafetensorError, and LifelongEditError where it is not, or where numbers
    are too large for `dtype`.
    """
    with quiet_transformers(), warnings.catch_warnings():
        # of memory that shards of weights from the disk will take: all of it is taken by now
        warnings.filterwarnings("ignore", message="Attempting to save a model with offloaded modules")
        state = {**state_of(loaded.model), **weights_meant(loaded, shifts, dtype)}
        loaded.model.save_pretrained(folder, state_dict=state, safe_serialization=True, max_shard_size=max_shard_size)
        loaded.tokenizer.save_pretrained(folder)
        if dtype is not None:
            _state_dtype(folder / "config.json", dtype)
        _take_along(loaded, folder)
        _require_same(loaded, folder, meant_fingerprint(loaded, shifts, dtype), dtype or loaded.dtype)


def _state_dtype(path: Path, dtype: torch.dtype) -> None:
    """Have a configuration name the dtype of the weights, which is not that of the model in memory."""

    def stated(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        name = str(dtype).removeprefix("torch.")
        return {key: name if key in ("dtype", "torch_dtype") else stated(part) for key, part in value.items()}

    told = stated(json.loads(path.read_bytes()))
    path.write_text(json.dumps(told, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _take_along(loaded: LoadedModel, folder: Path) -> None:
    """Copy what else lies beside the base's weights and belongs to them, as far as it can still be found."""
    troubles = ("missing_entries", "connection_errors", "gated_repo")
    quietly: dict[str, Any] = {f"_raise_exceptions_for_{trouble}": False for trouble in troubles}
    with contextlib.suppress(LifelongEditError):  # a base that was moved away since it was loaded
        home = locate(loaded.source)
        for name in () if home.gguf else PASSENGERS:
            revision = getattr(loaded.model.config, "_commit_hash", None)
            found = cached_file(home.path, name, revision=revision, **quietly)
            if found is not None and not (folder / name).exists():
                shutil.copyfile(found, folder / name)


def _require_same(loaded: LoadedModel, folder: Path, meant: str, dtype: torch.dtype) -> None:
    """Read what was written, as anybody would, and compare."""
    places = {"device_map": spread(loaded.model)} if spread(loaded.model) else {}
    found = fingerprint_of(type(loaded.model).from_pretrained(folder, dtype=dtype, use_safetensors=True, **places))
    if found != meant:
        raise LifelongEditError(
            f"what was exported reads back with fingerprint {found}, expected {meant}; nothing of it was kept, since "
            "transformers does not save this model as it is"
        )
