"""Writes docs/settings.md from the classes of the settings: `python scripts/settings-docs.py docs/settings.md`.

`SECTIONS` lists (heading, struct class). What a field is for is the string literal that stands behind it, and its range
is that of its type. What a class takes over from one that has a section of its own stands there alone.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import msgspec

from lifelong_edit.editors.coachhook.settings import CoachHookSettings
from lifelong_edit.editors.ft.settings import FtSettings
from lifelong_edit.editors.ft_replay.settings import ReplaySettings
from lifelong_edit.editors.grace.settings import GraceSettings
from lifelong_edit.editors.li.settings import LiSettings
from lifelong_edit.editors.locate.settings import LocateSettings
from lifelong_edit.editors.locft.settings import LocftSettings
from lifelong_edit.editors.mend.settings import MendSettings
from lifelong_edit.editors.neurons.settings import NeuronsSettings
from lifelong_edit.editors.retrieval.settings import RetrievalSettings
from lifelong_edit.editors.ridge.settings import RidgeSettings
from lifelong_edit.editors.rledit.settings import RLSettings
from lifelong_edit.editors.search.settings import SearchingSettings, SearchSettings
from lifelong_edit.editors.serac.settings import SeracSettings
from lifelong_edit.editors.stableedit.settings import StableSettings
from lifelong_edit.editors.ultraedit.settings import UltraSettings
from lifelong_edit.editors.wise.settings import WiseSettings
from lifelong_edit.editors.wrapping.settings import NasSettings, PruneSettings, RectSettings, SimieSettings
from lifelong_edit.settings import StoreSettings

Sections = Sequence[tuple[str, type[msgspec.Struct]]]
Number = msgspec.inspect.IntType | msgspec.inspect.FloatType

SECTIONS: Sections = (
    ("Settings of every store", StoreSettings),
    ("Settings of the ridge rules", RidgeSettings),
    ("Settings of UltraEdit", UltraSettings),
    ("Settings of StableEdit", StableSettings),
    ("Settings of RLEdit", RLSettings),
    ("Settings of MEND", MendSettings),
    ("Settings of rules that search", SearchingSettings),
    ("Settings of the search", SearchSettings),
    ("Settings of the neurons", NeuronsSettings),
    ("Settings of locate-then-edit", LocateSettings),
    ("Settings of fine-tuning", FtSettings),
    ("Settings of fine-tuning with replay", ReplaySettings),
    ("Settings of breadth-first fine-tuning", LocftSettings),
    ("Settings of interpolated fine-tuning", LiSettings),
    ("Settings of the codebook", GraceSettings),
    ("Settings of hooks", CoachHookSettings),
    ("Settings of the side memory", WiseSettings),
    ("Settings of retrieval", RetrievalSettings),
    ("Settings of SERAC", SeracSettings),
    ("Settings of RECT", RectSettings),
    ("Settings of PRUNE", PruneSettings),
    ("Settings of SimIE", SimieSettings),
    ("Settings of NAS", NasSettings),
)

HEAD = """\
# Settings

<!-- Made by scripts/settings-docs.py from the classes of the settings; do not edit by hand. -->

What decides an edit is fixed when a store is made, and is stored with it. So the same batch at the same state gives the same weights digest again.

Give a setting as `--set NAME=VALUE` to `init`, or to the `stream` that makes the store. Some have an option of their own: `--editor`, `--modules`, `--dtype`, `--device`, `--seed`. A list is written with commas. `show 0 --json` says what a store has.

A hypernetwork brings the settings of the solve that it was trained for; `--set` wins. `train --choose` looks for settings that suit your model ([training](training.md#choosing-the-settings)). What each part of the solve is worth is measured in [the ablations](ablations.md).
"""  # noqa: E501

WORDS: list[tuple[type[msgspec.inspect.Type], str]] = [
    (msgspec.inspect.BoolType, "true or false"),
    (msgspec.inspect.IntType, "whole number"),
    (msgspec.inspect.FloatType, "number"),
    (msgspec.inspect.StrType, "text"),
    (msgspec.inspect.VarTupleType, "list of texts"),
    (msgspec.inspect.NoneType, "none"),
]


def docstrings(struct: type[msgspec.Struct]) -> dict[str, str]:
    """Field name to the string literal behind it, on one line; of base classes too, those of `struct` first."""
    found: dict[str, str] = {}
    for cls in (c for c in struct.__mro__ if issubclass(c, msgspec.Struct) and c is not msgspec.Struct):
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                    found.setdefault(name, " ".join(words.split()))
    return found


def bounds(one: Number) -> list[str]:
    """The range of a number, as its type says."""
    words = {"ge": "{:g} or more", "gt": "more than {:g}", "le": "at most {:g}", "lt": "less than {:g}"}
    found = ((text, getattr(one, name)) for name, text in words.items())
    return [text.format(bound) for text, bound in found if bound is not None]


def kind(field: msgspec.inspect.Field) -> str:
    """What values a field takes, in words."""
    types = field.type.types if isinstance(field.type, msgspec.inspect.UnionType) else (field.type,)
    parts = []
    for one in types:
        if isinstance(one, msgspec.inspect.LiteralType):
            parts.append(" or ".join(f"`{value}`" for value in sorted(map(str, one.values))))
            continue
        word = next((text for cls, text in WORDS if isinstance(one, cls)), type(one).__name__)
        parts.append(", ".join([word, *bounds(one)]) if isinstance(one, Number) else word)
    return "; or ".join(parts)


def default(field: msgspec.inspect.Field) -> str:
    """The default as one would write it behind `NAME=`."""
    value = field.default
    if value is msgspec.NODEFAULT:
        value = () if field.default_factory is not msgspec.NODEFAULT else value
    if value is msgspec.NODEFAULT:
        return "required"
    if value is None or value == ():
        return "none"
    if isinstance(value, tuple):
        return f"`{','.join(map(str, value))}`"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"`{value}`" if isinstance(value, str) else f"{value:.10g}"


def table(struct: type[msgspec.Struct], told: frozenset[str] = frozenset()) -> str:
    """The table of a class but for the fields of `told`. Raises ValueError where a field has no text behind it."""
    texts = docstrings(struct)
    info = msgspec.inspect.type_info(struct)
    assert isinstance(info, msgspec.inspect.StructType)
    rows = ["| setting | default | takes | what it is |", "| --- | --- | --- | --- |"]
    for field in (field for field in info.fields if field.name not in told):
        if field.name not in texts:
            raise ValueError(f"{struct.__name__}.{field.name} has no docstring; write one behind the field")
        cells = (f"`{field.name}`", default(field), kind(field), texts[field.name])
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def document(sections: Sections = SECTIONS) -> str:
    """The whole page: each class with its heading, its docstring and its table."""
    parts = [HEAD]
    for heading, struct in sections:
        bases = [base for _, base in sections if base is not struct and issubclass(struct, base)]
        told = frozenset(name for base in bases for name in base.__struct_fields__)
        parts.append(f"## {heading}\n\n{inspect.cleandoc(struct.__doc__ or '')}\n\n{table(struct, told)}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(document(), encoding="utf-8")
