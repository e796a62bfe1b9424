"""Nearest live facts by key: FAISS inner product over unit vectors, a cache that the log can always rebuild."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from lifelong_edit.atomic import write_bytes_atomic
from lifelong_edit.errors import StoreError, UsageError
from lifelong_edit.stores.digests import digest_bytes

FloatArray = npt.NDArray[np.float32]
Rebuild = Callable[[], tuple[Sequence[str], FloatArray]]

INDEX_FILE, INDEX_NOTE = "keys.faiss", "keys.json"
MAX_BYTES = 1 << 36
"""The largest index file that is read back."""


class _Note(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an index file holds and at which head of the log it was saved; the digest is over that and the file."""

    chain: str
    digest: str
    width: int
    facts: tuple[str, ...]


class KeyIndex:
    """Unit vectors (width,) by fact digest. Mutation is guarded by a lock: FAISS itself is not thread-safe."""

    def __init__(self, width: int) -> None:
        if width < 1:
            raise UsageError(f"the width of a key index is {width}; it must be at least 1")
        faiss = _faiss()
        self.width = width
        self._index: Any = faiss.IndexIDMap2(faiss.IndexFlatIP(width))
        self._ids: dict[str, int] = {}
        self._facts: dict[int, str] = {}
        self._guard = threading.Lock()

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, fact: object) -> bool:
        return fact in self._ids

    @property
    def facts(self) -> tuple[str, ...]:
        """The digests of the facts in the index, in the order in which they came."""
        return tuple(self._ids)

    def add(self, facts: Sequence[str], vectors: FloatArray) -> None:
        """Add the keys of facts, (n, width); they are normalised here.

        Raises StoreError, naming the fact, for one that is there already or twice in `facts`, for NaN, for a vector
        without a direction, and for a wrong width; nothing is added then.
        """
        unit = self._unit(facts, vectors)
        with self._guard:
            ids = {fact: _id_of(fact) for fact in facts}
            for fact, number in ids.items():
                if number in self._facts:
                    raise StoreError(f"fact {fact} is in the key index already; remove it first")
            if len(ids) != len(facts) or len(set(ids.values())) != len(facts):
                twice = next(fact for i, fact in enumerate(facts) if fact in facts[:i])
                raise StoreError(f"fact {twice} is given twice; each fact has one key in the index")
            if ids:
                self._index.add_with_ids(unit, np.fromiter(ids.values(), np.int64, len(ids)))
            self._ids.update(ids)
            self._facts.update({number: fact for fact, number in ids.items()})

    def remove(self, facts: Sequence[str]) -> None:
        """Take facts out. Raises StoreError, naming the fact, for one that is not in the index."""
        with self._guard:
            for fact in facts:
                if fact not in self._ids:
                    raise StoreError(f"fact {fact} is not in the key index")
            gone = {self._ids[fact] for fact in facts}
            if gone:
                self._index.remove_ids(np.fromiter(gone, np.int64, len(gone)))
            for number in gone:
                del self._ids[self._facts.pop(number)]

    def search(self, vectors: FloatArray, count: int) -> list[list[tuple[str, float]]]:
        """For each query (n, width) up to `count` facts with the largest cosine, largest first."""
        unit = self._unit([f"query {i}" for i in range(len(vectors))], vectors)
        with self._guard:
            if not len(unit) or not self._ids or count < 1:
                return [[] for _ in range(len(unit))]
            cosines, numbers = self._index.search(unit, min(count, len(self._ids)))
        return [
            [(self._facts[int(n)], float(c)) for n, c in zip(row, cosine, strict=True) if n >= 0]
            for row, cosine in zip(numbers, cosines, strict=True)
        ]

    def _unit(self, names: Sequence[str], vectors: FloatArray) -> FloatArray:
        """The vectors at length 1, after refusing by name whatever FAISS would take silently."""
        array = np.ascontiguousarray(vectors, dtype=np.float32)
        if array.ndim != 2 or array.shape != (len(names), self.width):
            raise StoreError(f"keys have shape {array.shape}; expected {(len(names), self.width)} for {names[:1]} …")
        norms = np.linalg.norm(array.astype(np.float64), axis=1)
        for name, norm in zip(names, norms, strict=True):
            if not np.isfinite(norm) or norm == 0:
                raise StoreError(f"the key of {name} has norm {norm}; expected a finite vector with a direction")
        unit: FloatArray = (array / norms[:, None]).astype(np.float32)
        return unit

    # -- the cache on the disk

    def save(self, folder: Path, chain: str) -> None:
        """Keep the index beside the log whose head has the chain digest `chain`; each file atomically."""
        with self._guard:
            data = _faiss().serialize_index(self._index).tobytes()
            facts = tuple(self._ids)
        note = _Note(chain, _digest(data, chain, facts), self.width, facts)
        folder.mkdir(exist_ok=True)
        write_bytes_atomic(folder / INDEX_FILE, data)
        write_bytes_atomic(folder / INDEX_NOTE, msgspec.json.encode(note))

    @classmethod
    def open(cls, folder: Path, width: int, chain: str, rebuild: Rebuild) -> KeyIndex:
        """The kept index where it is intact and of that head, else one made of what `rebuild` returns."""
        found = cls._load(folder, width, chain)
        if found is not None:
            return found
        made = cls(width)
        facts, vectors = rebuild()
        if facts:
            made.add(facts, vectors)
        return made

    @classmethod
    def _load(cls, folder: Path, width: int, chain: str) -> KeyIndex | None:
        """The kept index, or None where anything about it is doubtful: the digest is checked before FAISS reads it."""
        try:
            note = msgspec.json.decode((folder / INDEX_NOTE).read_bytes(), type=_Note)
            data = (folder / INDEX_FILE).read_bytes()
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return None
        if (note.chain, note.width, note.digest) != (chain, width, _digest(data, chain, note.facts)):
            return None
        faiss = _faiss()
        try:
            index = faiss.deserialize_index(np.frombuffer(data, dtype=np.uint8))
        except RuntimeError:
            return None
        made = cls(width)
        made._ids = {fact: _id_of(fact) for fact in note.facts}
        made._facts = {number: fact for fact, number in made._ids.items()}
        kept = set(faiss.vector_to_array(index.id_map).tolist()) if hasattr(index, "id_map") else set()
        if index.d != width or index.ntotal != len(note.facts) or kept != set(made._facts):
            return None
        made._index = index
        return made


def _digest(data: bytes, chain: str, facts: Sequence[str]) -> str:
    return digest_bytes(data, chain.encode(), "\n".join(facts).encode())


def _id_of(fact: str) -> int:
    """A fact's number in FAISS: the first 63 bits of its digest, never −1, which FAISS means as "none"."""
    try:
        return int(fact[:16], 16) >> 1
    except ValueError:
        raise StoreError(f"{fact!r} is no fact digest; expected hexadecimal characters") from None


def _faiss() -> Any:
    """FAISS, imported when first needed (`status` and `log` never do), its reader's limits set once."""
    import faiss

    faiss.set_deserialization_vector_byte_limit(MAX_BYTES)
    return faiss
