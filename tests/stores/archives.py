"""Stores that past releases made, kept in `data/`."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any


def schema_1(folder: Path) -> Path:
    """A store of schema 1, unpacked: step 0, two edits of one fact each into a 4 × 3 matrix, a rollback to step 1."""
    return _unpack("schema-1.tar.gz", folder)


def schema_2(folder: Path) -> Path:
    """A store of schema 2, unpacked: the same steps, and a tag, a branch and a switch."""
    return _unpack("schema-2.tar.gz", folder)


def schema_3(folder: Path) -> Path:
    """A store of schema 3, unpacked: those steps, a compaction without the branch, a purge of its fact."""
    return _unpack("schema-3.tar.gz", folder)


def schema_4(folder: Path) -> Path:
    """A store of schema 4, unpacked: those steps, two edits with keys and moments, a record in quarantine, a

    reconsolidation, one that was refused, a retraction, a measurement. What that release said of it is in
    `schema-4.json`: `said_of_schema_4`.
    """
    return _unpack("schema-4.tar.gz", folder)


def said_of_schema_4() -> Any:
    """What the release that made the store of schema 4 said of it, by `log`, `show` and the like with `--json`.

    history: of each step what was folded from the log at its state. holding: of each fact the states that hold it.
    """
    return json.loads((Path(__file__).parent / "data" / "schema-4.json").read_bytes())


def _unpack(name: str, folder: Path) -> Path:
    with tarfile.open(Path(__file__).parent / "data" / name) as archive:
        archive.extractall(folder, filter="data")
    return folder / "store"
