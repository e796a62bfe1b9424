"""Stores that past releases made, kept in `data/`."""

from __future__ import annotations

import tarfile
from pathlib import Path


def schema_1(folder: Path) -> Path:
    """A store of schema 1, unpacked: step 0, two edits of one fact each into a 4 × 3 matrix, a rollback to step 1."""
    return _unpack("schema-1.tar.gz", folder)


def schema_2(folder: Path) -> Path:
    """A store of schema 2, unpacked: the same steps, and a tag, a branch and a switch."""
    return _unpack("schema-2.tar.gz", folder)


def schema_3(folder: Path) -> Path:
    """A store of schema 3, unpacked: those steps, a compaction without the branch, a purge of its fact."""
    return _unpack("schema-3.tar.gz", folder)


def _unpack(name: str, folder: Path) -> Path:
    with tarfile.open(Path(__file__).parent / "data" / name) as archive:
        archive.extractall(folder, filter="data")
    return folder / "store"
