"""The formats in which a state leaves a store. A new one is a function that fills a folder, and one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lifelong_edit.editors.contract import Format
from lifelong_edit.errors import UsageError

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
    """What is known of a format before anything is loaded. home: its `Write`, `module:function`; says: for `--help`.

    casts: whether it writes weights in another dtype than the model's; its function has then a parameter `dtype`.
    """

    home: str
    says: str
    casts: bool = False

    def require_dtype(self, dtype: str | None) -> None:
        """Raise UsageError where weights shall be in a dtype of their own, and are not written in any."""
        if dtype is not None and not self.casts:
            raise UsageError(
                f"found --dtype {dtype}, but this format writes no weights in a dtype of their own; leave it out"
            )

    def writer(self) -> Write:
        """The function that writes it, imported."""
        module, _, name = self.home.partition(":")
        found: Write = getattr(import_module(module), name)
        return found


FORMATS: dict[Format, Form] = {
    "transformers": Form(
        "lifelong_edit.export.whole:write_transformers", "a folder that `from_pretrained` loads", casts=True
    ),
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
    dtype: str | None = None,
) -> None:
    """Write the model as an overlay makes it into a folder, which appears whole or not at all.

    dtype: "float32", "bfloat16" or "float16", of the weights; by default the model's own. provenance: what else
    `lifelong_edit.json` is to say, JSON values by name (step, digests). force: replace an earlier export; nothing else
    is ever replaced. Raises UsageError where `out` is taken, where the overlay is more than shifted weights, or where
    the format takes no dtype, LifelongEditError where `out` cannot be written, or is not read back as it was meant;
    what was there is then as it was.
    """
    from lifelong_edit.export.placing import placed
    from lifelong_edit.models import without_hooks
    from lifelong_edit.numerics.devices import DTYPES

    form = FORMATS[kind]
    form.require_dtype(dtype)
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"found the dtype {dtype!r} for an export, expected one of {', '.join(DTYPES)}")
    cast = None if dtype is None else DTYPES[dtype]
    options: dict[str, Any] = {} if cast is None else {"dtype": cast}
    write = partial(form.writer(), **options)
    alone, shifts = without_hooks(loaded, overlay)
    with placed(out, alone, shifts, base=loaded, force=force, provenance=provenance or {}, dtype=cast) as folder:
        write(alone, shifts, folder)
