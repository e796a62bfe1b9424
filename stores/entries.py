"""What is kept of each fact, as bytes: what the blobs of a part whose fold is `upsert` hold, written and read here.

| tensor        | what                                                                                  |
| ------------- | ------------------------------------------------------------------------------------- |
| `facts`       | (n, 16) uint8: the digests of the facts, in order                                     |
| `conflict`    | (n, d_in) float32 or float16: of each the key of the lowest edited module at its last prompt token |
| `rows/NAME`   | (rows, …): rows of all of them, one fact behind the other                             |
| `counts/NAME` | (n,) int32: how many of these rows each fact has                                      |

`conflict` is there for the keys of facts alone. Their rows are named after modules: (rows, d_in) int16, on the grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lifelong_edit.errors import StoreDamagedError
from lifelong_edit.stores.tensors import Array, decode_tensors, encode_tensors

FACTS, CONFLICT, ROWS, COUNTS = "facts", "conflict", "rows/", "counts/"


@dataclass(frozen=True, eq=False)
class Entry:
    """What a part keeps of one fact. rows: by name (n, …) of any type, the same names and shapes for all facts."""

    rows: dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class FactKeys(Entry):
    """The live keys of one fact, stored verbatim.

    rows: module → (n, d_in) int16 on the grid; none for a rule that needs no keys of its own. conflict: (d_in,)
    float32 or float16, the key of the lowest edited module at the last prompt token, which never goes stale.
    """

    conflict: npt.NDArray[np.floating]


def encode_entries(entries: Mapping[str, Entry]) -> bytes:
    """Entries of facts, by digest, as bytes; all of one kind and with the same names."""
    facts = sorted(entries)
    named = np.frombuffer(bytes.fromhex("".join(facts)), np.uint8).reshape(len(facts), -1 if facts else 16)
    tensors: dict[str, npt.NDArray[Any]] = {FACTS: named}
    keys = [entry.conflict for fact in facts if isinstance(entry := entries[fact], FactKeys)]
    if keys:
        tensors[CONFLICT] = np.stack(keys)
    for name in entries[facts[0]].rows if facts else ():
        tensors[ROWS + name] = np.concatenate([entries[fact].rows[name] for fact in facts])
        tensors[COUNTS + name] = np.array([len(entries[fact].rows[name]) for fact in facts], np.int32)
    return encode_tensors(tensors)


def decode_entries(data: bytes, what: str) -> dict[str, Entry]:
    """The inverse of `encode_entries`. Raises StoreDamagedError, naming `what`, where parts do not fit each other."""
    tensors: dict[str, npt.NDArray[Any]] = dict(decode_tensors(data, what))
    try:
        facts = _names(tensors)
        names = [name.removeprefix(ROWS) for name in tensors if name.startswith(ROWS)]
        ends = {name: np.cumsum(tensors[COUNTS + name])[:-1] for name in names}
        split: dict[str, list[Any]] = {name: np.split(tensors[ROWS + name], ends[name]) for name in names}
        conflict = tensors.get(CONFLICT)
        if {len(facts), *(() if conflict is None else (len(conflict),)), *map(len, split.values())} != {len(facts)}:
            raise ValueError("one part has keys of more facts than another")
    except (KeyError, ValueError, TypeError) as error:
        raise _unfitting(what, error) from error
    rows = [{name: split[name][i] for name in names} for i in range(len(facts))]
    if conflict is None:
        return dict(zip(facts, map(Entry, rows), strict=True))
    return dict(zip(facts, map(FactKeys, rows, conflict), strict=True))


def entry_names(data: bytes, what: str) -> tuple[str, ...]:
    """The digests of the facts whose keys a blob holds, and nothing else of it. Errors as of `decode_entries`."""
    try:
        return _names(decode_tensors(data, what, only=(FACTS,)))
    except (KeyError, ValueError, TypeError) as error:
        raise _unfitting(what, error) from error


def conflict_entries(data: bytes, what: str) -> tuple[tuple[str, ...], npt.NDArray[np.float32]]:
    """The digests of the n facts, and their conflict keys, (n, d_in); nothing else. Errors as of `decode_entries`."""
    try:
        tensors = decode_tensors(data, what, only=(FACTS, CONFLICT))
        names, keys = _names(tensors), tensors[CONFLICT].astype(np.float32)
        if keys.ndim != 2 or len(keys) != len(names):
            raise ValueError(f"found keys {keys.shape} of {len(names)} facts")
        return names, keys
    except (KeyError, ValueError, TypeError) as error:
        raise _unfitting(what, error) from error


def _names(tensors: Mapping[str, Array]) -> tuple[str, ...]:
    return tuple(row.tobytes().hex() for row in tensors[FACTS])


def _unfitting(what: str, error: Exception) -> StoreDamagedError:
    return StoreDamagedError(f"{what}: the parts do not fit each other ({error})")
