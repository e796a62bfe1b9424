"""The tables of the edit log as seen by one transaction, every value in its envelope.

`meta` (marker), `steps` (step number → record), `facts` (digest → encoded fact), `blobs` (digest → bytes),
`references` (digest → how many steps name that blob), `places` (place → what was consumed there, by which steps;
and what was consumed without a step), `head`, `measurements` (step number → what was measured of its state). How a
value stands there is for `stores.envelopes` to say.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec

from lifelong_edit.errors import StoreDamagedError, StoreError, said
from lifelong_edit.stores.codec import decode_step
from lifelong_edit.stores.digests import digest_bytes
from lifelong_edit.stores.envelopes import IN_THE_CLEAR, Envelopes
from lifelong_edit.stores.environment import MEASUREMENTS, Environment
from lifelong_edit.stores.measurements import Measurement, decode_measurement, encode_measurement, without_facts
from lifelong_edit.stores.records import StepRecord
from lifelong_edit.stores.steps import Place

T = TypeVar("T")

HEAD, MARKER = b"head", b"marker"
UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are no such record: bad UTF-8 and deep nesting as Python's own errors."""
_IDLE = "idle/"
"""Begins the keys of places consumed without a step; behind those of all others, which are hexadecimal."""


class Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The last committed step, its chain digest, and the blob that holds its state's ΔW whole."""

    step: int
    chain: str
    weights: str | None = None


class Consumed(NamedTuple):
    """One consumption of a place: the fact that stood there and the step that consumed it."""

    fact: str
    step: int


class Tables:
    """Named, verified reads and writes within one transaction."""

    def __init__(self, environment: Environment, transaction: Any, envelopes: Envelopes = IN_THE_CLEAR) -> None:
        self._environment, self._transaction, self._envelopes = environment, transaction, envelopes

    def find(self, table: str, key: bytes) -> bytes | None:
        """The payload of a record or None. Raises StoreDamagedError, naming the record, where its digest differs."""
        found = self._transaction.get(key, db=self._environment.tables[table])
        return None if found is None else self._envelopes.unseal(record_name(table, key), bytes(found))

    def need(self, table: str, key: bytes) -> bytes:
        """As `find`; raises StoreDamagedError where the record is missing."""
        found = self.find(table, key)
        if found is None:
            raise StoreDamagedError(
                f"record {record_name(table, key)} is missing from {self._environment.folder}; restore it from a backup"
            )
        return found

    def put(self, table: str, key: bytes, payload: bytes, *, overwrite: bool = True) -> None:
        """Write a record in its envelope."""
        sealed = self._envelopes.seal(record_name(table, key), payload)
        self._transaction.put(key, sealed, overwrite=overwrite, db=self._environment.tables[table])

    def make(self, table: str) -> None:
        """Make a table that earlier schemas had not, unless it is there; for the transaction of a writer."""
        self._environment.make_table(table, self._transaction)

    # -- single records

    def marker(self) -> bytes:
        """The encoded marker: whose database this is."""
        return self.need("meta", MARKER)

    def head(self) -> Head:
        """The head."""
        return decode(self.need("head", HEAD), Head, "head/head")

    def step(self, number: int) -> tuple[StepRecord, str]:
        """A step and its chain digest."""
        payload = self.need("steps", step_key(number))
        return step_of(number, payload), digest_bytes(payload)

    # -- blobs

    def has_blob(self, digest: str) -> bool:
        """Whether a blob is kept; looks at the key alone, a blob may be large."""
        with self._transaction.cursor(db=self._environment.tables["blobs"]) as cursor:
            return bool(cursor.set_key(digest.encode()))

    def blob(self, digest: str) -> bytes:
        """A blob, verified. Raises StoreDamagedError where it is missing or reads differently."""
        data = self._transaction.get(digest.encode(), db=self._environment.tables["blobs"])
        if data is None:
            raise StoreDamagedError(f"blob {digest} is missing from {self._environment.folder}; restore a backup")
        return self._envelopes.unseal_blob(digest, bytes(data))

    def put_blob(self, digest: str, data: bytes) -> None:
        """Keep a blob; one that is there already is left alone, its content being the same."""
        if not self.has_blob(digest):
            stored = self._envelopes.seal_blob(digest, data)
            self._transaction.put(digest.encode(), stored, db=self._environment.tables["blobs"])

    def drop_unreferenced(self, digest: str) -> None:
        """Drop a blob unless a step names it."""
        if not self.references(digest):
            self._transaction.delete(digest.encode(), db=self._environment.tables["blobs"])

    def drop_blob(self, digest: str) -> None:
        """Drop a blob, whoever names it."""
        self._transaction.delete(digest.encode(), db=self._environment.tables["blobs"])

    def drop_fact(self, digest: str) -> None:
        """Drop the text of a fact; that it was there stays in the steps."""
        self._transaction.delete(digest.encode(), db=self._environment.tables["facts"])

    def blob_size(self, digest: str) -> int:
        """How many bytes a blob has, 0 where it is not kept; it is not read."""
        with self._environment.env.begin(db=self._environment.tables["blobs"], buffers=True) as transaction:
            found = transaction.get(digest.encode())
            return 0 if found is None else self._envelopes.blob_size(len(found))

    def blob_sizes(self) -> dict[str, int]:
        """The blobs that are kept, with how many bytes each has; none of them is read."""
        with self._environment.env.begin(db=self._environment.tables["blobs"], buffers=True) as transaction:
            size = self._envelopes.blob_size
            return {bytes(key).decode(): size(len(value)) for key, value in transaction.cursor()}

    def references(self, digest: str) -> int:
        """How many steps name a blob."""
        found = self.find("references", digest.encode())
        return 0 if found is None else int.from_bytes(found, "big")

    def refer(self, digest: str) -> None:
        """Count one more step that names a blob. Raises StoreError where the blob is not kept."""
        if not self.has_blob(digest):
            raise StoreError(f"the step names blob {digest}, which is not in the store")
        self.put("references", digest.encode(), (self.references(digest) + 1).to_bytes(8, "big"))

    # -- places

    def consumed(self, file_digest: str, number: int) -> list[Consumed]:
        """Every consumption of a place, in the order of the steps."""
        key = place_key(file_digest, number)
        found = self.find("places", key)
        return [] if found is None else decode(found, list[Consumed], record_name("places", key))

    def consume(self, place: Place, step: int) -> None:
        """Note that a step consumed a place."""
        consumed = [*self.consumed(place.file_digest, place.number), Consumed(place.fact, step)]
        self.put("places", place_key(place.file_digest, place.number), msgspec.msgpack.encode(consumed))

    def consume_idle(self, state: int, places: Sequence[Place]) -> None:
        """Note that places were consumed at the state of a step, with nothing to do there."""
        payload = msgspec.msgpack.encode(places)
        self.put("places", f"{_IDLE}{state}/{digest_bytes(payload)}".encode(), payload)

    def idle(self) -> dict[int, list[Place]]:
        """By step: the places that were consumed at its state with nothing to do there."""
        found: dict[int, list[Place]] = {}
        with self._transaction.cursor(db=self._environment.tables["places"]) as cursor:
            if not cursor.set_range(_IDLE.encode()):
                return found
            for key, value in cursor:
                name = record_name("places", key)
                payload = self._envelopes.unseal(name, bytes(value))  # first: the key of an intact record is intact
                if not is_idle(key):
                    continue
                _, state, _ = key.decode().split("/")
                found.setdefault(int(state), []).extend(decode(payload, list[Place], name))
        return found

    # -- measurements

    def measurements(self) -> Iterator[Measurement]:
        """All of them, by step. Raises StoreDamagedError, naming the record, where one is damaged."""
        if MEASUREMENTS in self._environment.tables:
            for key, payload in self._all(MEASUREMENTS):
                yield measurement_of(key, payload)

    def put_measurement(self, measurement: Measurement) -> None:
        """Keep a measurement, in the place of an earlier one of the same step."""
        self.make(MEASUREMENTS)
        self.put(MEASUREMENTS, step_key(measurement.step), encode_measurement(measurement))

    def forget_measured(self, facts: Collection[str]) -> None:
        """Drop what was measured of some facts."""
        gone = frozenset(facts)
        for measurement in list(self.measurements()):
            left = without_facts(measurement, gone)
            if left != measurement:
                self.put_measurement(left)

    # -- all of them

    def check_derived(self, steps: Iterable[StepRecord]) -> None:
        """Hold `places` and `references` against the steps, which have a chain, as these tables have not.

        Of them alone a record that is not found would be taken for one that was never written. Raises
        StoreDamagedError, naming the record or the table.
        """
        places, references = (dict(self._all(table)) for table in ("places", "references"))
        for step in steps:
            for place in step.places:
                key = place_key(place.file_digest, place.number)
                if key not in places:
                    raise StoreDamagedError(self._lost(record_name("places", key), step.step))
            for digest in step.blobs:
                # A blob may be gone by a compaction; one that is there and that nothing counts would be dropped.
                if digest.encode() not in references and self.has_blob(digest):
                    raise StoreDamagedError(self._lost(f"references/{digest}", step.step))

    def _lost(self, name: str, step: int) -> str:
        folder = self._environment.folder
        return f"record {name} of step {step} is missing from {folder}; restore it from a backup"

    def _all(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        """All records of a table, verified; raises StoreDamagedError where they are not as many as it should hold."""
        database, count = self._environment.tables[table], 0
        with self._transaction.cursor(db=database) as cursor:
            for key, value in cursor:
                yield bytes(key), self._envelopes.unseal(record_name(table, key), bytes(value))
                count += 1
        expected = self._transaction.stat(database)["entries"]
        if count != expected:
            raise StoreDamagedError(
                f"table {table} of {self._environment.folder} holds {count} records, expected {expected}; "
                "restore the store from a backup"
            )


def decode(payload: bytes, kind: type[T], name: str) -> T:
    """A msgpack record. Raises StoreDamagedError, naming it, where the bytes are no such record."""
    try:
        return msgspec.msgpack.decode(payload, type=kind)
    except UNDECODABLE as error:
        raise StoreDamagedError(f"record {name} is not one of this schema ({said(error)})") from error


def step_of(number: int, payload: bytes) -> StepRecord:
    """A step from its record, of this schema or an earlier one. Raises StoreDamagedError where the bytes are none."""
    try:
        return decode_step(payload)
    except UNDECODABLE as error:
        raise StoreDamagedError(f"record steps/{number} is no step of this schema ({said(error)})") from error


def measurement_of(key: bytes, payload: bytes) -> Measurement:
    """A measurement from its record. Raises StoreDamagedError, naming it, where the bytes are none."""
    try:
        return decode_measurement(payload)
    except UNDECODABLE as error:
        name = record_name(MEASUREMENTS, key)
        raise StoreDamagedError(f"record {name} is no measurement of this schema ({said(error)})") from error


def step_key(step: int) -> bytes:
    """The key of a step: its number as eight bytes, big-endian, so that LMDB keeps them in order."""
    return step.to_bytes(8, "big")


def place_key(file_digest: str, number: int) -> bytes:
    """The key of a place."""
    return file_digest.encode() + step_key(number)


def is_idle(key: bytes) -> bool:
    """Whether a key of `places` is of places that were consumed without a step."""
    return key.startswith(_IDLE.encode())


def record_name(table: str, key: bytes) -> str:
    """What a record is called in errors, and under which its digest is taken."""
    if table in ("steps", MEASUREMENTS):
        return f"{table}/{int.from_bytes(key, 'big')}"
    if table == "places" and not is_idle(key):
        return f"places/{key[:-8].decode('utf-8', 'backslashreplace')}:{int.from_bytes(key[-8:], 'big')}"
    return f"{table}/{key.decode('utf-8', 'backslashreplace')}"
