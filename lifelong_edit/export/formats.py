"""The formats in which a state leaves a store. A new one is a module of this package, and one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lifelong_edit.editors.contract import Format

if TYPE_CHECKING:
    from lifelong_edit.models import LoadedModel, Overlay

Write = Callable[..., None]
"""Writes a state: the loaded model, the state's overlay, the folder; `force` and `provenance` by name."""
FORMATS: dict[Format, str] = {"transformers": "lifelong_edit.export.whole:export_transformers"}
"""What writes each format, as `module:function`, imported when it is asked for."""


def export(
    kind: Format,
    loaded: LoadedModel,
    overlay: Overlay,
    out: Path,
    *,
    force: bool = False,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write the model as an overlay makes it. Errors as of the format's own writer."""
    module, _, name = FORMATS[kind].partition(":")
    write: Write = getattr(import_module(module), name)
    write(loaded, overlay.shifts, out, force=force, provenance=provenance)
