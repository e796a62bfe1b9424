"""Where a model lies: what its source stands for, and what can be refused before anything of it is read."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from lifelong_edit.errors import LifelongEditError, UsageError
from lifelong_edit.models.gguf import read_header
from lifelong_edit.models.hub import FILE, packed

BUNDLED = {"atlas": "model", "atlas-check": "check", "atlas-t5": "t5"}
"""The bundled models: in which folder of `lifelong_edit.atlas` each lies."""
_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class Place:
    """Where a model is read from. path: a folder or hub id. gguf: the file in the folder that holds all of it."""

    path: str
    gguf: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What `from_pretrained` needs beside the path."""
        return {} if self.gguf is None else {"gguf_file": self.gguf}

    @property
    def file(self) -> Path | None:
        """The GGUF file, None where the model is not one."""
        return None if self.gguf is None else Path(self.path) / self.gguf


def locate(source: str, revision: str | None = None) -> Place:
    """What a source stands for: the bundled model, a folder, a GGUF file, a hub id, or a GGUF file behind a hub id.

    Raises UsageError where there is no model, LifelongEditError for a model that cannot be read as a whole.
    """
    if source in BUNDLED:
        path = Path(str(files("lifelong_edit.atlas"))) / BUNDLED[source]
        if not path.is_dir():
            raise LifelongEditError(f"the bundled model is missing at {path}: install lifelong-edit again")
    else:
        path = Path(source).expanduser()
    if path.is_dir():
        return _folder(path)
    if path.is_file() and path.suffix.lower() == ".gguf":
        return _gguf(path)
    elsewhere = source.count("/") == 1 or FILE.fullmatch(source)
    if path.exists() or path.is_absolute() or source.startswith((".", "~")) or not elsewhere:
        raise UsageError(
            f"no model at {source!r}: expected {' or '.join(BUNDLED)}, a folder with config.json, a .gguf file, or a "
            "hub id a/b"
        )
    file = packed(source, revision)
    return Place(source) if file is None else _gguf(file)


def _folder(path: Path) -> Place:
    """A folder with a model, checked."""
    # A model in another format beside it does not matter where there are safetensors.
    written, packed = sorted(path.glob("*.safetensors")), sorted(path.glob("*.gguf"))
    if packed and not written:
        return _gguf(_one_of(path, packed))
    if not (path / "config.json").is_file():
        raise UsageError(f"folder {path} holds no model: expected config.json in it")
    if not written:
        found = ", ".join(sorted(p.name for p in path.glob("*.bin"))) or "no weights"
        raise LifelongEditError(
            f"folder {path} has {found}, but weights are read from *.safetensors or *.gguf only, because other formats "
            "can run code; convert them with save_pretrained(..., safe_serialization=True)"
        )
    for name in _ADAPTERS:
        if (path / name).exists():
            raise LifelongEditError(
                f"folder {path} has {name} beside the weights of the model, which would be left out; merge the adapter "
                "into the model and save that, or move the adapter's files elsewhere"
            )
    index = path / "model.safetensors.index.json"
    if index.is_file():
        _check_index(index)
    return Place(str(path))


def _check_index(index: Path) -> None:
    """Refuse an index that names files outside its folder."""
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise LifelongEditError(f"{index} is damaged: expected a JSON object with weight_map") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise LifelongEditError(f"{index} names {name!r}: expected a *.safetensors file beside it")


def _one_of(folder: Path, found: Sequence[Path]) -> Path:
    if len(found) == 1 or re.search(r"-\d+-of-\d+\.gguf$", found[0].name):
        return found[0]
    names = ", ".join(path.name for path in found[:4])
    raise UsageError(f"folder {folder} has {len(found)} GGUF files ({names}): name one of them as the model")


def _gguf(path: Path) -> Place:
    read_header(path).require_readable()
    return Place(str(path.parent), path.name)
