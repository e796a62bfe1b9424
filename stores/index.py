"""Nearest live facts by key: exact cosines, found by a scan of FAISS that leaves none out. A cache of the log.

The scan looks at bounds: for each key a number that its cosine with the query cannot exceed. Where the bounds are the
cosines themselves the index is *flat*. A *reduced* one splits a unit key x along its first directions into a and the
rest b, so that q·x = a(q)·a(x) + b(q)·b(x) ≤ a(q)·a(x) + |b(q)||b(x)|: an inner product of keys a fraction as wide,
(a, |b|). What the bounds leave over is compared exactly, by the keys themselves; where that does not settle it, a
second scan brings all keys whose bound is not below the worst answer so far. So the answers are a function of the keys
alone: not of the kind of index, nor of the order in which facts came and went, nor of the directions that were chosen.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from lifelong_edit.atomic import write_bytes_atomic
from lifelong_edit.errors import StoreDamagedError, StoreError, UsageError
from lifelong_edit.stores.digests import digest_bytes
from lifelong_edit.stores.envelopes import IN_THE_CLEAR, Envelopes
from lifelong_edit.stores.tables import UNDECODABLE

FloatArray = npt.NDArray[np.float32]
Source = Callable[[Sequence[str]], FloatArray]
"""The keys of facts as they were added, (n, width)."""
Found = list[tuple[str, float]]
Kind = Literal["flat", "reduced"]

INDEX_FILE, INDEX_NOTE = "keys.faiss", "keys.json"
DIRECTIONS = 128
"""Directions of a reduced index; 128 and the rest are an eighth of a key of 1,024."""
_NAME = f"index/{INDEX_FILE}"
"""What the index is called where it is encrypted."""
_HEXADECIMAL = re.compile("[0-9a-f]{16}")
_SAMPLE = 8192
_CHUNK = 16384
_SLACK = 1e-5
"""By how much a bound in float32 may fall short of the cosine that it bounds."""
_DIGITS = 7
"""Decimals of a cosine: those beyond would depend on how a processor sums."""


class _Note(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an index file holds and at which head of the log it was saved; the digest is over all of it and the file."""

    chain: str
    digest: str
    width: int
    facts: tuple[str, ...]
    directions: int = 0
    """Of a reduced index: how many, whose float32 bytes (width, directions) end the file."""
    fitted: int = 0


class KeyIndex:
    """Unit vectors (width,) by fact digest. Mutation is guarded by a lock: FAISS itself is not thread-safe.

    source: gives the keys of facts in the index whenever they are compared exactly; the index keeps bounds alone.
    """

    def __init__(self, width: int, source: Source) -> None:
        if width < 1:
            raise UsageError(f"the width of a key index is {width}; it must be at least 1")
        self.width, self._source = width, source
        self._basis: FloatArray | None = None
        self._fitted = 0
        self._scan: Any = _scan(width)
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

    @property
    def kind(self) -> Kind:
        """What the scan looks at: whole keys, or reduced ones."""
        return "flat" if self._basis is None else "reduced"

    @property
    def fitted(self) -> int:
        """Of a reduced index: how many keys it held when its directions were fitted."""
        return self._fitted

    def differing(self, facts: Collection[str], among: Collection[str] | None = None) -> tuple[list[str], list[str]]:
        """What is in the index and not among `facts`, and what is among them and not in the index; each sorted.

        among: all that can be either, where that is known.
        """
        names = {*self._ids, *facts} if among is None else among
        gone = sorted(name for name in names if name in self._ids and name not in facts)
        return gone, sorted(name for name in names if name in facts and name not in self._ids)

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
                self._scan.add_with_ids(self._reduced(unit), np.fromiter(ids.values(), np.int64, len(ids)))
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
                self._scan.remove_ids(np.fromiter(gone, np.int64, len(gone)))
            for number in gone:
                del self._ids[self._facts.pop(number)]

    def rebuild(self, kind: Kind) -> None:
        """Make the scan anew, as one of that kind; a reduced one of the directions in which its keys vary most."""
        with self._guard:
            facts = sorted(self._ids)
            self._basis, self._fitted = None, 0
            if kind == "reduced" and facts:
                sample = facts[:: -(-len(facts) // _SAMPLE)]
                unit = self._unit(sample, self._source(sample))
                _, vectors = np.linalg.eigh((unit.T @ unit).astype(np.float64))
                self._basis = np.ascontiguousarray(vectors[:, ::-1][:, :DIRECTIONS], dtype=np.float32)
                self._fitted = len(facts)
            self._scan = _scan(self._scan_width)
            for start in range(0, len(facts), _CHUNK):
                part = facts[start : start + _CHUNK]
                unit = self._unit(part, self._source(part))
                self._scan.add_with_ids(self._reduced(unit), np.array([self._ids[fact] for fact in part], np.int64))

    # -- searching

    def search(self, vectors: FloatArray, count: int, least: float = -1.0) -> list[Found]:
        """For each query (n, width) up to `count` facts with the largest cosine, largest first, none below `least`.

        Exact, to seven decimals; of equal cosines the smaller digest comes first.
        """
        unit = self._unit([f"query {i}" for i in range(len(vectors))], vectors)
        with self._guard:
            found: list[Found] = [[] for _ in unit]
            if not len(unit) or not self._ids or count < 1:
                return found
            scanned, reach = self._reduced(unit), min(2 * count + 16, len(self._ids))
            bounds, numbers = self._scan.search(scanned, reach)
            near = [row[keep] for row, keep in zip(numbers, bounds >= least - _SLACK, strict=True)]
            found = self._compare(vectors, range(len(unit)), near, count, least)
            worst = [row[-1][1] if len(row) == count else least for row in found]
            unsure = [i for i, bound in enumerate(bounds[:, -1]) if reach < len(self) and bound + _SLACK >= worst[i]]
            # Whatever could still be among the answers has a bound that is not below the worst of them by now.
            near = [self._scan.range_search(scanned[i : i + 1], worst[i] - _SLACK)[2] for i in unsure]
            for query, answers in zip(unsure, self._compare(vectors, unsure, near, count, least), strict=True):
                found[query] = answers
        return found

    def _compare(
        self, vectors: FloatArray, queries: Sequence[int], near: Sequence[Any], count: int, least: float
    ) -> list[Found]:
        """The best of each query among keys of these numbers, exactly."""
        names = [[self._facts[number] for number in row.tolist()] for row in near]
        facts = list(dict.fromkeys(fact for row in names for fact in row))
        if not facts:
            return [[] for _ in names]
        keys = np.asarray(self._source(facts), np.float64)
        keys /= np.linalg.norm(keys, axis=1, keepdims=True)
        where = {fact: number for number, fact in enumerate(facts)}
        found = []
        for query, row in zip(queries, names, strict=True):
            asked = np.asarray(vectors[query], np.float64)
            cosines = np.round(keys[[where[fact] for fact in row]] @ asked / np.linalg.norm(asked), _DIGITS).tolist()
            ordered = sorted(zip(row, cosines, strict=True), key=lambda pair: (-pair[1], pair[0]))
            found.append([(fact, cosine) for fact, cosine in ordered[:count] if cosine >= least])
        return found

    def _reduced(self, unit: FloatArray) -> FloatArray:
        """What is scanned of unit keys: themselves, or their first coordinates and the length of the rest."""
        if self._basis is None:
            return unit
        first = unit @ self._basis
        rest = np.linalg.norm(unit - first @ self._basis.T, axis=1, keepdims=True)
        return np.hstack([first, rest]).astype(np.float32)

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

    def save(self, folder: Path, chain: str, envelopes: Envelopes = IN_THE_CLEAR) -> None:
        """Keep the index beside the log whose head has the chain digest `chain`; each file atomically.

        envelopes: those of the log, whose keys are not to stand here in the clear where it is encrypted.
        """
        with self._guard:
            data = _faiss().serialize_index(self._scan).tobytes()
            directions = 0
            if self._basis is not None:
                directions, data = self._basis.shape[1], data + self._basis.tobytes()
            facts = tuple(self._ids)
        data = envelopes.seal_file(_NAME, data)
        bare = _Note(chain, "", self.width, facts, directions, self._fitted)
        note = msgspec.structs.replace(bare, digest=_digest(data, bare))
        folder.mkdir(exist_ok=True)
        write_bytes_atomic(folder / INDEX_FILE, data)
        write_bytes_atomic(folder / INDEX_NOTE, msgspec.json.encode(note))

    @classmethod
    def open(
        cls,
        folder: Path,
        width: int,
        chain: str,
        source: Source,
        facts: Sequence[str],
        envelopes: Envelopes = IN_THE_CLEAR,
    ) -> KeyIndex:
        """The kept index where it is intact and of that head, else a flat one of the keys of `facts`."""
        found = cls._load(folder, width, chain, source, envelopes)
        if found is not None:
            return found
        made = cls(width, source)
        for start in range(0, len(facts), _CHUNK):
            part = facts[start : start + _CHUNK]
            made.add(part, source(part))
        return made

    @classmethod
    def _load(cls, folder: Path, width: int, chain: str, source: Source, envelopes: Envelopes) -> KeyIndex | None:
        """The kept index, or None where anything about it is doubtful: the digest is checked before FAISS reads it."""
        try:
            note = msgspec.json.decode((folder / INDEX_NOTE).read_bytes(), type=_Note)
            data = (folder / INDEX_FILE).read_bytes()
        except (OSError, *UNDECODABLE):
            return None
        if (note.chain, note.width, note.digest) != (chain, width, _digest(data, note)):
            return None
        if not 0 <= note.directions <= width:
            return None
        with contextlib.suppress(StoreDamagedError):
            return cls._read(note, envelopes.unseal_file(_NAME, data), source)
        return None

    @classmethod
    def _read(cls, note: _Note, data: bytes, source: Source) -> KeyIndex | None:
        """The index in the bytes of its file, or None where they hold something else than was noted."""
        width = note.width
        faiss, made = _faiss(), cls(width, source)
        end = len(data) - 4 * width * note.directions
        if end < 0:
            return None
        if note.directions:
            made._basis = np.frombuffer(data[end:], np.float32).reshape(width, note.directions)
            made._fitted = note.fitted
        # A file that announces more than it holds is refused before room is made for it.
        faiss.set_deserialization_vector_byte_limit(len(data))
        try:
            scan = faiss.deserialize_index(np.frombuffer(data[:end], dtype=np.uint8))
        except RuntimeError:
            return None
        made._ids = {fact: _id_of(fact) for fact in note.facts}
        made._facts = {number: fact for fact, number in made._ids.items()}
        kept = set(faiss.vector_to_array(scan.id_map).tolist()) if hasattr(scan, "id_map") else set()
        if scan.d != made._scan_width or scan.ntotal != len(note.facts) or kept != set(made._facts):
            return None
        made._scan = scan
        return made

    @staticmethod
    def doubt(folder: Path) -> str | None:
        """What is wrong with a kept index, whatever head it is of; None where it is intact or there is none."""
        try:
            note = msgspec.json.decode((folder / INDEX_NOTE).read_bytes(), type=_Note)
            data = (folder / INDEX_FILE).read_bytes()
        except FileNotFoundError as error:
            there = any((folder / name).exists() for name in (INDEX_FILE, INDEX_NOTE))
            return f"{Path(error.filename).name} is missing beside it" if there else None
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            return f"it cannot be read ({error})"
        found = _digest(data, note)
        return None if found == note.digest else f"its digest is {found}, but {note.digest} was noted with it"

    @property
    def _scan_width(self) -> int:
        return self.width if self._basis is None else self._basis.shape[1] + 1


def _scan(width: int) -> Any:
    faiss = _faiss()
    return faiss.IndexIDMap(faiss.IndexFlatIP(width))


def _digest(data: bytes, note: _Note) -> str:
    """Over the bytes of an index file and all that its note says but this digest."""
    return digest_bytes(data, msgspec.json.encode(msgspec.structs.replace(note, digest="")))


def _id_of(fact: str) -> int:
    """A fact's number in FAISS: the first 63 bits of its digest, never −1, which FAISS means as "none"."""
    if not _HEXADECIMAL.match(fact):
        raise StoreError(f"{fact!r} is no fact digest; expected hexadecimal characters")
    return int(fact[:16], 16) >> 1


def _faiss() -> Any:
    """FAISS, imported when first needed: `status` and `log` never do."""
    import faiss

    # For a batch of queries products of matrices are three times as quick; some releases begin with them late.
    faiss.cvar.distance_compute_blas_threshold = min(1000, faiss.cvar.distance_compute_blas_threshold)
    return faiss
