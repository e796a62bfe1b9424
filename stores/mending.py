"""Repair of a store: what can be made again from what is intact, and proved by a digest. Nothing else is touched.

All of it is one transaction. What it replaces in the database is kept beside it, in `repairs/N.msgpack`: arrays
of table, key and the value as it stood (nil where there was none), each behind its length, 8 bytes big-endian.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from lifelong_edit.atomic import fsync_path
from lifelong_edit.errors import BadInputError, StoreDamagedError, StoreError
from lifelong_edit.facts import Fact
from lifelong_edit.stores import environment as environments
from lifelong_edit.stores.codec import decode_step
from lifelong_edit.stores.digests import DIGEST_SIZE, digest_bytes, is_sealed, seal
from lifelong_edit.stores.findings import Entry, Examination, count_references
from lifelong_edit.stores.folding import Shapes, Weights, encode_whole, zeros
from lifelong_edit.stores.identity import write_acknowledged, write_marker
from lifelong_edit.stores.index import INDEX_FILE, INDEX_NOTE, KeyIndex
from lifelong_edit.stores.parts import WEIGHTS, Part, replay
from lifelong_edit.stores.schema import StoreMarker
from lifelong_edit.stores.tables import HEAD, MARKER, Consumed, Head, Tables, is_idle, place_key, record_name
from lifelong_edit.stores.tensors import encode_tensors, tensors_digest

REPAIRS = "repairs"
MAX_SEARCHED = 1 << 14
"""Bytes of a record, or of a blob, in which a single flipped bit is searched for: some seconds' work."""


def mend(found: Examination) -> None:
    """Mend what was found, as far as it can be. The caller holds the writer's lock; look again to see what is left.

    Raises StoreError where the disk refuses; nothing is changed then.
    """
    if found.readable:
        _mend_database(found)
    marker = found.marker or found.inside
    if marker is not None and found.marker is None and _of_one_store(found):
        write_marker(found.path, marker)
    inside = found.inside
    if inside is not None and marker is not None and _of_one_store(found):
        _finish_rekey(found, marker, inside)
    head = found.head
    if found.acknowledged is None and found.readable and head is not None and marker is not None:
        sound = found.chained and head.step == found.last and head.chain == found.steps[head.step].chain
        if sound and _of_one_store(found):
            write_acknowledged(found.path, marker.store_id, head)
    if KeyIndex.doubt(found.path / "index") is not None:
        for name in (INDEX_NOTE, INDEX_FILE):
            (found.path / "index" / name).unlink(missing_ok=True)


def _finish_rekey(found: Examination, marker: StoreMarker, inside: StoreMarker) -> None:
    """Let store.json hold the key as the database does; where that way is not the one at hand, a writer decides."""
    if marker.encryption != inside.encryption == found.envelopes.encryption:
        write_marker(found.path, msgspec.structs.replace(marker, encryption=inside.encryption))


def _of_one_store(found: Examination) -> bool:
    return len({one.store_id for one in (found.marker, found.inside, found.acknowledged) if one is not None}) == 1


def _mend_database(found: Examination) -> None:
    environment = environments.acquire(found.path, read_only=False)
    keepsake = _Keepsake(found.path)

    def change(transaction: Any) -> None:
        keepsake.begin()  # a second time where the map had to be grown
        _Mender(found, environment, transaction, keepsake).mend()
        keepsake.keep()

    try:
        environment.write(change)
    except BaseException:
        keepsake.remove()
        raise
    finally:
        keepsake.close()
        environments.release(environment)


class _Keepsake:
    """A new file for what a repair replaces. It is on the disk before the repair is committed."""

    def __init__(self, path: Path) -> None:
        self._folder = path / REPAIRS
        taken = [int(file.stem) for file in self._folder.glob("*.msgpack") if file.stem.isdecimal()]
        self._path = self._folder / f"{max(taken, default=0) + 1}.msgpack"
        self._file: BinaryIO | None = None

    def begin(self) -> None:
        """Begin anew, with nothing in it."""
        self.remove()
        self._file = None

    def note(self, table: str, key: bytes, former: bytes | None) -> None:
        """Keep what stood at a key; the file is made with the first."""
        if self._file is None:
            self._folder.mkdir(exist_ok=True)
            self._file = self._path.open("xb")
        data = msgspec.msgpack.encode([table, key, former])
        self._file.write(len(data).to_bytes(8, "big") + data)

    def keep(self) -> None:
        """Force it to disk."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            fsync_path(self._folder)
            fsync_path(self._folder.parent)

    def remove(self) -> None:
        """Take it away: nothing was replaced."""
        if self._file is not None:
            self._file.close()
            self._path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self._folder.rmdir()

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()


class _Mender:
    """One repair in one write transaction."""

    def __init__(self, found: Examination, environment: Any, transaction: Any, keepsake: _Keepsake) -> None:
        self.found, self.tables = found, Tables(environment, transaction, found.envelopes)
        self._environment, self._transaction, self._keepsake = environment, transaction, keepsake

    def mend(self) -> None:
        """Do all that can be done."""
        for (table, key), sealed in list(self.found.broken.items()):
            mended = self._mended(table, key, sealed)
            if mended is not None:
                self._put(table, key, mended)
                self._take(table, key, mended)
        self._bits_of_blobs()
        if self.found.chained and self._is_newest():
            self._references()
            self._places()
            self._head()
            self._wholes()
        self._marker()

    def _put(self, table: str, key: bytes, value: bytes | None) -> None:
        """Replace a value as it is stored (None: take it away), and keep what stood there."""
        database = self._environment.tables[table]
        former = self._transaction.get(key, db=database)
        if former == value:
            return
        self._keepsake.note(table, key, former)
        if value is None:
            self._transaction.delete(key, db=database)
        else:
            self._transaction.put(key, value, db=database)

    def _put_record(self, table: str, key: bytes, payload: bytes) -> None:
        with contextlib.suppress(StoreDamagedError):
            if self.tables.find(table, key) == payload:
                return  # encrypted again it would read differently
        self._put(table, key, self.found.envelopes.seal(record_name(table, key), payload))

    def _put_blob(self, digest: str, data: bytes) -> None:
        self._put("blobs", digest.encode(), self.found.envelopes.seal_blob(digest, data))
        self.found.blobs[digest] = len(data)

    # -- records whose own digests say what they were

    def _mended(self, table: str, key: bytes, sealed: bytes) -> bytes | None:
        """The record as it was written, where that can be proved: by another digest of it, or by its own."""
        name, payload = record_name(table, key), sealed[DIGEST_SIZE:]
        if self.found.envelopes.proved(name, sealed) is not None:
            return seal(name, payload)
        if table == "steps" and digest_bytes(payload) == self._chain_of(int.from_bytes(key, "big")):
            return seal(name, payload)
        if table == "facts":
            with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, BadInputError):
                fact = msgspec.json.decode(payload, type=Fact)
                if fact.digest.encode() == key and msgspec.json.encode(fact) == payload:
                    return seal(name, payload)
        return _one_bit_off(sealed, lambda data: is_sealed(name, data))

    def _chain_of(self, step: int) -> str | None:
        """The chain digest of a step by what comes after it."""
        following, head, known = self.found.steps.get(step + 1), self.found.head, self.found.acknowledged
        if following is not None:
            return following.record.previous
        if head is not None and head.step == step:
            return head.chain
        return known.chain if known is not None and known.step == step else None

    def _take(self, table: str, key: bytes, sealed: bytes) -> None:
        """Count a mended record among those that are intact."""
        with contextlib.suppress(msgspec.MsgspecError, StoreDamagedError):
            payload = self.found.envelopes.unseal(record_name(table, key), sealed)
            if table == "steps":
                record = decode_step(payload)
                self.found.steps[record.step] = Entry(record, digest_bytes(payload))
            elif table == "head" and key == HEAD:
                self.found.head = msgspec.msgpack.decode(payload, type=Head)

    def _bits_of_blobs(self) -> None:
        for digest in sorted(self.found.damaged):
            key = digest.encode()
            data = self._transaction.get(key, db=self._environment.tables["blobs"])
            mended = None if data is None else _one_bit_off(data, self._blob_holds(digest))
            if mended is not None:
                self._put("blobs", key, mended)
                self.found.blobs[digest] = self.found.envelopes.blob_size(len(mended))

    def _blob_holds(self, digest: str) -> Callable[[bytearray], bool]:
        """Whether bytes are that blob as it is stored; of an encrypted one its envelope says so."""
        if self.found.envelopes.encryption is None:
            return lambda trial: digest_bytes(trial) == digest
        return lambda trial: is_sealed(f"blobs/{digest}", trial)

    def _is_newest(self) -> bool:
        """Whether the log reaches what was acknowledged; an older copy is nothing to repair."""
        known = self.found.acknowledged
        there = self.found.steps.get(known.step) if known is not None else None
        return known is None or (there is not None and there.chain == known.chain)

    # -- what follows from the steps

    def _references(self) -> None:
        counts = count_references(self.found)
        for digest, count in counts.items():
            self._put_record("references", digest.encode(), count.to_bytes(8, "big"))
        for digest in self.found.references.keys() - counts.keys():
            self._put("references", digest.encode("ascii", "ignore"), None)

    def _places(self) -> None:
        broken = {int(n) for n in self.found.steps if self._places_differ(n)}
        damaged = [key for table, key in self.found.broken if table == "places" and not is_idle(key)]
        if not broken and not damaged:
            return
        consumed: dict[bytes, list[Consumed]] = {}
        for number in sorted(self.found.steps):
            for place in self.tables.step(number)[0].places:
                key = place_key(place.file_digest, place.number)
                consumed.setdefault(key, []).append(Consumed(place.fact, number))
        for key, entries in consumed.items():
            self._put_record("places", key, msgspec.msgpack.encode(entries))
        for key in damaged:
            if key not in consumed:
                self._put("places", key, None)

    def _places_differ(self, step: int) -> bool:
        return self.found.steps[step].places != self.found.places.get(step, 0)

    # -- ΔW whole

    def _head(self) -> None:
        """The head by the steps, where its record is gone or names weights that are not there."""
        found, last = self.found, self.found.last
        head = found.head
        if head is not None and head.step == last and head.chain == found.steps[last].chain:
            if head.weights is None or head.weights in found.blobs:
                return
            expected: str | None = head.weights
        elif head is None:
            expected = None
        else:
            return  # intact, and of another history: that is for people
        weights = self._keep_whole(last, expected)
        if weights is not None:
            found.head = Head(last, found.steps[last].chain, weights)
            self._put_record("head", HEAD, msgspec.msgpack.encode(found.head))

    def _keep_whole(self, step: int, expected: str | None) -> str | None:
        """The blob with the ΔW at a step, written where it is not there; None where it cannot be proved."""
        state = self.found.state_of(step)
        whole = self.found.whole(state)
        if whole is not None and whole in self.found.blobs and expected in (None, whole):
            return whole
        weights = self._fold(state)
        if weights is None:
            return None
        data = encode_tensors(weights)
        digest = digest_bytes(data)
        self._put_blob(digest, data)
        return digest

    def _wholes(self) -> None:
        """States that are stored whole, folded again from earlier ones."""
        for number in sorted(self.found.steps):
            whole = self.found.whole(number)
            if whole is None or whole in self.found.blobs or whole in self.found.dropped:
                continue
            weights = self._fold(number)
            forms = () if weights is None else (encode_whole(weights, half) for half in (False, True))
            for data in forms:
                if digest_bytes(data) == whole:
                    self._put_blob(whole, data)
                    break

    def _fold(self, state: int) -> Weights | None:
        """ΔW at a state from an earlier one; None where a part is missing or it has another digest than was logged."""
        line, at = list[Part](), state
        while at >= 0 and at in self.found.steps:
            record, whole = self.found.steps[at].record, self.found.whole(at)
            if whole is not None and whole in self.found.blobs:
                line.append(Part(fold="sum", whole=whole, digest=record.weights_digest))
                break
            part = record.parts.get(WEIGHTS)
            if part is not None and part.change:
                line.append(msgspec.structs.replace(part, whole=None))
            elif whole is not None and record.parent >= 0:
                return None  # solved anew: no shift leads there
            at = record.parent
        start = self._shapes() if at < 0 else {}
        if start is None or any(blob not in self.found.blobs for part in line for blob in part.blobs):
            return None
        with contextlib.suppress(StoreDamagedError, StoreError, ValueError, KeyError):
            weights: Weights = replay(reversed(line), self.tables.blob, zeros(start))
            if tensors_digest(weights) == self.found.steps[state].record.weights_digest:
                return weights
        return None

    def _shapes(self) -> Shapes | None:
        """The shapes of the edited modules, as step 0 has them."""
        try:
            modules = self.found.steps[0].record.provenance["config"]["model"]["modules"]
            return msgspec.convert(modules, dict[str, tuple[int, int]])
        except (KeyError, TypeError, msgspec.ValidationError):
            return None

    def _marker(self) -> None:
        if self.found.inside is None and self.found.marker is not None and _of_one_store(self.found):
            self._put_record("meta", MARKER, msgspec.json.encode(self.found.marker))
            self.found.inside = self.found.marker


def _one_bit_off(data: bytes, holds: Callable[[bytearray], bool]) -> bytes | None:
    """The bytes of which one bit was flipped, where there are some that hold; 128 bits of digest leave no doubt."""
    if len(data) > MAX_SEARCHED:
        return None
    trial = bytearray(data)
    for at in range(len(trial)):
        for bit in range(8):
            trial[at] ^= 1 << bit
            if holds(trial):
                return bytes(trial)
            trial[at] ^= 1 << bit
    return None
