"""The formats in which a state leaves a store. A new one is a function that fills a folder, and one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lifelong_edit.editors.contract import Format

if TYPE_CHECKING:
    from torch import Tensor

    from lifelong_edit.models import LoadedModel, Overlay

Write = Callable[["LoadedModel", "Mapping[str, Tensor]", Path], None]
"""`write(loaded, shifts, folder)` writes a state's files into an empty folder, and nothing elsewhere.

shifts: module name → ΔW (d_in, d_out) float32, all that the state is; `loaded.edited_weights(shifts)` are the
weights that they make, whatever `loaded` stands at. The folder's place, `--force` and `lifelong_edit.json` are no
concern of it (`lifelong_edit.export.placing`). An OSError or SafetensorError becomes one sentence for the user;
whatever it raises, nothing of the folder stays.
"""


@dataclass(frozen=True)
class Form:
    """What is known of a format before anything is loaded. home: its `Write`, `module:function`; says: for `--help`."""

    home: str
    says: str

    def writer(self) -> Write:
        """The function that writes it, imported."""
        module, _, name = self.home.partition(":")
        found: Write = getattr(import_module(module), name)
        return found


FORMATS: dict[Format, Form] = {
    "transformers": Form("lifelong_edit.export.whole:write_transformers", "a folder that `from_pretrained` loads"),
}
"""Every format by name."""


def export(
    kind: Format,
    loaded: LoadedModel,
    overlay: Overlay,
    out: Path,
    *,
    force: bool = False,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write the model as an overlay makes it into a folder, which appears whole or not at all.

    provenance: what else `lifelong_edit.json` is to say, JSON values by name (step, digests). force: replace an earlier
    export; nothing else is ever replaced. Raises UsageError where `out` is taken, or where the overlay is more than
    shifted weights, LifelongEditError where `out` cannot be written; what was there is then as it was.
    """
    from lifelong_edit.export.placing import placed
    from lifelong_edit.models import only_shifts

    shifts, write = only_shifts(overlay), FORMATS[kind].writer()
    with placed(out, loaded, shifts, force=force, provenance=provenance or {}) as folder:
        write(loaded, shifts, folder)
