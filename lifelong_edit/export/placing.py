"""What every export has, whatever its format: a place that may be taken, all of it or nothing, and where it is from."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from lifelong_edit.atomic import replace_dir_atomic
from lifelong_edit.errors import LifelongEditError
from lifelong_edit.export.places import PROVENANCE, require_free
from lifelong_edit.models import LoadedModel, fingerprint_of
from lifelong_edit.models.loading import auto_of

CARD = "README.md"
"""The model card of an export, as the hub shows it."""
FORMAT = 1
"""Of that file."""


@contextmanager
def placed(
    out: Path,
    loaded: LoadedModel,
    shifts: Mapping[str, Tensor],
    *,
    base: LoadedModel,
    force: bool,
    provenance: Mapping[str, Any],
    dtype: torch.dtype | None = None,
    card: str | None = None,
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """An empty folder to fill, and what there is to tell of it; when the context closes it is `out`, with provenance.

    shifts: module name → ΔW (d_in, d_out) float32, of the state that is written, on top of `loaded`, which is `base`
    itself or a model made of it. force, provenance, card, dtype and errors as of
    `lifelong_edit.export.formats.export`. If the context raises, `out` is as it was.
    """
    out = Path(out).expanduser().resolve()
    require_free(out, force)
    found: dict[str, Any] = {}
    try:
        with replace_dir_atomic(out) as folder:
            yield folder, found
            told = provenance_of(loaded, shifts, base, {**provenance, **found}, dtype)
            text = json.dumps(told, indent=2, ensure_ascii=False)
            (folder / PROVENANCE).write_text(text + "\n", encoding="utf-8")
            if card is not None:
                (folder / CARD).write_text(card, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise LifelongEditError(f"cannot export to {out}: {error}; what was there is as it was") from error


def loader_of(loaded: LoadedModel) -> str:
    """The class of transformers whose `from_pretrained` loads such a model, by name."""
    return str(auto_of(loaded.family.kind, loaded.model.config).__name__)


def weights_meant(
    loaded: LoadedModel, shifts: Mapping[str, Tensor], dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """W₀ + ΔW as an export holds it: parameter name → tensor, only what is not in the base model as it stands.

    dtype: of all weights that are in the model's own dtype; None leaves it. Weights that are tied are so still.
    Raises LifelongEditError where a number is too large for it.
    """
    edited = loaded.edited_weights(shifts)
    if dtype is None or dtype == loaded.dtype:
        return edited
    cast: dict[Tensor, Tensor] = {}
    meant = {}
    for name, own in loaded.model.named_parameters(remove_duplicate=False):
        tensor = edited.get(name, own.detach())
        if tensor.dtype != loaded.dtype:  # what has to be exact is kept so, as transformers does
            continue
        meant[name] = cast.setdefault(own, tensor.to(dtype))
        if not bool(torch.isfinite(meant[name]).all()):
            raise LifelongEditError(
                f"{name} has numbers that {str(dtype).removeprefix('torch.')} cannot hold; export in another dtype"
            )
    return meant


def meant_fingerprint(loaded: LoadedModel, shifts: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> str:
    """The fingerprint of the model that an export holds. Arguments as of `weights_meant`."""
    return fingerprint_of(loaded.model, weights_meant(loaded, shifts, dtype))


def provenance_of(
    loaded: LoadedModel,
    shifts: Mapping[str, Tensor],
    base: LoadedModel,
    more: Mapping[str, Any],
    dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """What `lifelong_edit.json` says: the base, the fingerprint of the edited weights, versions, and `more`."""
    packages = ("lifelong-edit", "torch", "transformers", "safetensors")
    return {
        "format": FORMAT,
        "base": {"source": base.source, "fingerprint": base.fingerprint},
        "fingerprint": meant_fingerprint(loaded, shifts, dtype),
        "dtype": str(dtype or loaded.dtype).removeprefix("torch."),
        "modules": [m.name for m in base.modules],
        "versions": {name: importlib.metadata.version(name) for name in packages} | {"torch": torch.__version__},
        **more,
    }
