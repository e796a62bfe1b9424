"""Keys of facts as bytes: what the blobs of a part whose fold is `upsert` hold, written and read here alone.

| tensor        | what                                                                                  |
| ------------- | ------------------------------------------------------------------------------------- |
| `facts`       | (n, 16) uint8: the digests of the facts, in order                                     |
| `conflict`    | (n, d_in) float32: of each the key of the lowest edited module at its last prompt token |
| `rows/MODULE` | (rows, d_in) int16: the keys of all of them, one fact behind the other                |
| `counts/MODULE` | (n,) int32: how many of these rows each fact has                                    |
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
class FactKeys:
    """The live keys of one fact, stored verbatim.

    rows: module → (n, d_in) int16 on the grid. conflict: (d_in,) float32, the key of the lowest
    edited module at the last prompt token, which never goes stale.
    """

    rows: dict[str, npt.NDArray[np.int16]]
    conflict: npt.NDArray[np.float32]


def encode_entries(entries: Mapping[str, FactKeys]) -> bytes:
    """Keys of facts, by digest, as bytes; of one fact at the least, all of the same modules."""
    facts = sorted(entries)
    tensors: dict[str, npt.NDArray[Any]] = {
        FACTS: np.frombuffer(bytes.fromhex("".join(facts)), np.uint8).reshape(len(facts), -1),
        CONFLICT: np.stack([entries[fact].conflict for fact in facts]),
    }
    for module in entries[facts[0]].rows:
        tensors[ROWS + module] = np.concatenate([entries[fact].rows[module] for fact in facts])
        tensors[COUNTS + module] = np.array([len(entries[fact].rows[module]) for fact in facts], np.int32)
    return encode_tensors(tensors)


def decode_entries(data: bytes, what: str) -> dict[str, FactKeys]:
    """The inverse of `encode_entries`. Raises StoreDamagedError, naming `what`, where parts do not fit each other."""
    tensors: dict[str, npt.NDArray[Any]] = dict(decode_tensors(data, what))
    try:
        facts = _names(tensors)
        modules = [name.removeprefix(ROWS) for name in tensors if name.startswith(ROWS)]
        ends = {module: np.cumsum(tensors[COUNTS + module])[:-1] for module in modules}
        split: dict[str, list[Any]] = {module: np.split(tensors[ROWS + module], ends[module]) for module in modules}
        conflict = tensors[CONFLICT]
        if {len(conflict), *map(len, split.values())} != {len(facts)}:
            raise ValueError("one part has keys of more facts than another")
    except (KeyError, ValueError, TypeError) as error:
        raise _unfitting(what, error) from error
    return {fact: FactKeys({m: split[m][i] for m in modules}, conflict[i]) for i, fact in enumerate(facts)}


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
