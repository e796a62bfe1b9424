"""Writes docs/record-shapes.md from a record of every public shape: `scripts/shapes-docs.py docs/record-shapes.md`.

The records are those of tests/facts/samples.py; what is made of them is read off by reading them.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

from lifelong_edit.facts import Reader, relations_of
from lifelong_edit.facts.shapes import SHAPES

SAMPLES = Path(__file__).resolve().parents[1] / "tests" / "facts" / "samples.py"
RELATIONS = {"P17": "{} is in"}
"""For the triple among the records."""
HEAD = """# Shapes of records

What `stream` makes of records as they are published, and of some that were never made for editing. A field is *used*
where it becomes part of a fact; a field that nothing is made of is *named*, once, with the number of records that had
it, in the summary of a run and by `facts --check`. Nothing is dropped in silence; what a shape cannot be is refused
with its file and line. [What a fact has](facts-format.md) says where each field goes.

`[]` in a name stands for each of a list, `[1:]` for all of a list but the first. `date`, `source`, `author`, `id`,
`relation`, `rephrases`, `locality`, `portability` and `target_true` are taken from every shape under these names, also
where the data has none of its own.

This page is made from a small record of each shape (`scripts/shapes-docs.py`), and held by a test.

| data | shape | recognised by | facts | fields used | fields named |
| --- | --- | --- | --- | --- | --- |
"""


def row(name: str, record: dict[str, Any]) -> str:
    """One line of the table."""
    found = Reader(relations=relations_of(RELATIONS))(record)
    whole = [path for path in found.unused if path in record]
    used = [field for field in record if field not in whole]
    keys = next((shape.keys for shape in SHAPES if shape.name == found.shape and shape.keys <= record.keys()), None)
    by = {
        "native": "`prompt`, `target`",
        "languages": "`src`, `alt` in each",
        "triple": "subject, relation, object (`--relations`)",
    }
    told = by.get(found.shape) or _listed([field for field in record if field in (keys or ())])
    cells = (name, found.shape, told, str(len(found.facts)), _listed(used), _listed(found.unused))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _listed(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in names) or "–"


def document() -> str:
    """The whole page."""
    samples = runpy.run_path(str(SAMPLES))["SAMPLES"]
    return HEAD + "\n".join(row(name, sample.record) for name, sample in samples.items()) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(document(), encoding="utf-8")
