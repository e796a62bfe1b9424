"""The formats in which a state leaves a store. A new one is a function that fills a folder, and one line here."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lifelong_edit.editors.contract import Format
from lifelong_edit.errors import LifelongEditError, UsageError

if TYPE_CHECKING:
    from lifelong_edit.models import LoadedModel, Overlay

Write = Callable[..., "Mapping[str, Any] | None"]
"""`write(loaded, shifts, folder)` writes a state's files into an empty folder, and nothing elsewhere.

shifts: module name → ΔW (d_in, d_out) float32, all that the state is; `loaded.edited_weights(shifts)` are the
weights that they make, whatever `loaded` stands at. What the form `takes` are keywords of it, each with a default.
What it returns, JSON values by name, is told to the user and stands in `lifelong_edit.json`. The folder's place,
`--force`, that file and the model card are no concern of it (`lifelong_edit.export.placing`). An OSError or
SafetensorError becomes one sentence for the user; whatever it raises, nothing of the folder stays.
"""

WANTED = {
    "dtype": "writes no weights in a dtype of their own",
    "max_shard_size": "writes one file of weights",
    "packed": "packs nothing",
    "rank": "has no rank",
    "error": "is exact",
    "questions": "asks nothing",
}
"""What a writer may take beside the state, and what is said of a format that does not take it."""


@dataclass(frozen=True)
class Form:
    """What is known of a format before anything is loaded. home: its `Write`, `module:function`; says: for `--help`.

    takes: those of WANTED that its function has as keywords. needs: a package that it cannot do without, which the
    extra of the format's name brings. models: a function of a model's source and revision, `module:function`, that
    refuses before any weights are loaded what the format cannot say.
    """

    home: str
    says: str
    takes: frozenset[str] = frozenset()
    needs: str | None = None
    models: str | None = None

    def require_model(self, source: str, revision: str | None = None) -> None:
        """Refuse a model that the format cannot say, by its configuration and tokenizer alone; raises UsageError."""
        if self.models is not None:
            _named(self.models)(source, revision)

    def require(self, options: Mapping[str, Any]) -> None:
        """Raise UsageError for an option that is not None and that this format does not take.

        And LifelongEditError where the package that it needs is not installed.
        """
        for name, value in self.options(options).items():
            if value is not None and name not in self.takes:
                option = f"--{'dtype' if name == 'packed' else name.replace('_', '-')} {value}"
                raise UsageError(f"found {option}, but this format {WANTED[name]}; leave it out")
        if self.needs is not None and importlib.util.find_spec(self.needs) is None:
            raise LifelongEditError(
                f"this format cannot be written without the package {self.needs}; install it with "
                f"`pip install 'lifelong-edit[{self.needs}]'`"
            )

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Options by the names of WANTED: a dtype that is a packing is `packed`. None is not given."""
        dtype = given.get("dtype")
        packed = {"packed": dtype, "dtype": None} if dtype in PACKINGS else {}
        return {name: value for name, value in {**given, **packed}.items() if value is not None}

    def writer(self) -> Write:
        """The function that writes it, imported."""
        found: Write = _named(self.home)
        return found


def _named(place: str) -> Any:
    """What `module:name` is."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


PACKINGS = ("q8_0",)
"""What a dtype may be for a format that packs: blocks of eight bits, as llama.cpp has them."""

FORMATS: dict[Format, Form] = {
    "transformers": Form(
        "lifelong_edit.export.whole:write_transformers",
        "a folder that `from_pretrained` loads",
        takes=frozenset({"dtype", "max_shard_size"}),
    ),
    "delta": Form(
        "lifelong_edit.export.delta:write_delta", "the change alone, for `lifelong-edit apply` or the script beside it"
    ),
    "peft": Form(
        "lifelong_edit.export.adapter:write_peft",
        "the change as a LoRA adapter, which loses what --rank or --error leaves out",
        takes=frozenset({"rank", "error", "questions"}),
    ),
    "gguf": Form(
        "lifelong_edit.export.gguf:write_gguf",
        "one file for llama.cpp and what is built on it",
        takes=frozenset({"dtype", "packed", "questions"}),
        needs="gguf",
        models="lifelong_edit.export.gguf_header:require_sayable",
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
    card: str | None = None,
    dtype: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Write the model as an overlay makes it into a folder, which appears whole or not at all; what the format tells.

    dtype: "float32", "bfloat16" or "float16", of the weights, or one of PACKINGS; by default the model's own. options:
    what else the format takes, by the names of WANTED; None is not given. provenance: what else `lifelong_edit.json`
    is to say, JSON values by name (step, digests). card: the text of the README.md beside the weights. force: replace
    an earlier export; nothing else is ever replaced. Raises UsageError where `out` is taken, for a model in shards,
    where the overlay is more than shifted weights, or for an option that the format does not take, LifelongEditError
    where `out` cannot be written, or is not read back as it was meant; what was there is then as it was.
    """
    from lifelong_edit.export.placing import placed
    from lifelong_edit.models import without_hooks
    from lifelong_edit.models.placement import require_unsharded
    from lifelong_edit.numerics.devices import DTYPES

    require_unsharded(loaded.model)
    form = FORMATS[kind]
    form.require({"dtype": dtype, **options})
    given = form.options({"dtype": dtype, **options})
    if (asked := given.get("dtype")) is not None and asked not in DTYPES:
        raise UsageError(f"found the dtype {asked!r} for an export, expected one of {', '.join(DTYPES)}")
    cast = None if asked is None else DTYPES[asked]
    if cast is not None:
        given["dtype"] = cast
    alone, shifts = without_hooks(loaded, overlay)
    told: dict[str, Any] = {}
    more = {**(provenance or {}), "kind": kind}
    with placed(out, alone, shifts, base=loaded, force=force, provenance=more, dtype=cast, card=card) as (
        folder,
        found,
    ):
        found.update(form.writer()(alone, shifts, folder, **given) or {})
        told.update(found)
    return told
