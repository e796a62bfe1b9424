"""The edited model for everyone else: a folder that `from_pretrained` loads and that answers the same."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from lifelong_edit.atomic import replace_dir_atomic
from lifelong_edit.errors import LifelongEditError, UsageError
from lifelong_edit.models import LoadedModel, fingerprint_of
from lifelong_edit.models.quiet import quiet_transformers

PROVENANCE = "lifelong_edit.json"
FORMAT = 1


def export_transformers(
    loaded: LoadedModel,
    shifts: Mapping[str, Tensor],
    out: Path,
    *,
    force: bool = False,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write the model with weights W₀ + ΔW, its tokenizer and generation settings as a transformers folder.

    shifts: module name → ΔW (d_in, d_out) float32; what `loaded`'s own shifts are does not matter. Weights are
    safetensors in the dtype that the base model was loaded in. provenance: what else `lifelong_edit.json` is to
    say, JSON values by name (step, digests). force: replace an earlier export; nothing else is ever replaced.
    Raises UsageError where `out` is taken, LifelongEditError where it cannot be written. `out` appears whole or
    not at all; what was there is intact until then.
    """
    out = Path(out).expanduser().resolve()
    _check_target(out, force)
    weights = loaded.edited_weights(shifts)
    try:
        with replace_dir_atomic(out) as folder, quiet_transformers():
            state = {**loaded.model.state_dict(), **weights}
            loaded.model.save_pretrained(folder, state_dict=state, safe_serialization=True)
            loaded.tokenizer.save_pretrained(folder)
            text = json.dumps(_provenance(loaded, weights, provenance or {}), indent=2, ensure_ascii=False)
            (folder / PROVENANCE).write_text(text + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise LifelongEditError(f"cannot export to {out}: {error}; what was there is as it was") from error


def _check_target(out: Path, force: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"cannot export to {out}: it is a file, expected a folder that does not exist yet")
    if not any(out.iterdir()):
        return
    if not (out / PROVENANCE).is_file():
        raise UsageError(f"{out} is no earlier export (no {PROVENANCE} in it) and is never replaced; name another")
    if not force:
        raise UsageError(f"{out} exists already; replace the earlier export with --force, or name another folder")


def _provenance(loaded: LoadedModel, weights: Mapping[str, Tensor], more: Mapping[str, Any]) -> dict[str, Any]:
    packages = ("lifelong-edit", "torch", "transformers", "safetensors")
    return {
        "format": FORMAT,
        "base": {"source": loaded.source, "fingerprint": loaded.fingerprint},
        "fingerprint": fingerprint_of(loaded.model, weights),
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "modules": [m.name for m in loaded.modules],
        "versions": {name: importlib.metadata.version(name) for name in packages} | {"torch": torch.__version__},
        **more,
    }
