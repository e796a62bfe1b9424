"""The edit log: every step with its facts and tensors, in LMDB, one write transaction each."""

from __future__ import annotations

import contextlib
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from lifelong_edit.atomic import replace_dir_atomic
from lifelong_edit.errors import StoreDamagedError, StoreError, UsageError
from lifelong_edit.stores import environment as environments
from lifelong_edit.stores.commit import enter, follow, with_keys
from lifelong_edit.stores.envelopes import IN_THE_CLEAR, Envelopes
from lifelong_edit.stores.environment import MEASUREMENTS, Environment
from lifelong_edit.stores.identity import (
    HEAD_FILE,
    check_identity,
    read_acknowledged,
    read_inside,
    read_marker,
    write_acknowledged,
    write_marker,
)
from lifelong_edit.stores.keys import keys_at_hand, read_key_file
from lifelong_edit.stores.lock import LOCK_FILE, WriterLock
from lifelong_edit.stores.measurements import Measurement
from lifelong_edit.stores.migrations import due, migrated, names
from lifelong_edit.stores.records import StepRecord
from lifelong_edit.stores.schema import StoreMarker
from lifelong_edit.stores.steps import Place
from lifelong_edit.stores.tables import MARKER, Consumed, Head, Tables
from lifelong_edit.stores.whereabouts import read_place, write_place


class EditLog:
    """An open store. One writer at a time; readers see a snapshot. Use as a context manager, or `close`."""

    def __init__(
        self, path: Path, marker: StoreMarker, environment: Environment, envelopes: Envelopes, lock: WriterLock | None
    ) -> None:
        self.path, self.marker, self.envelopes = path, marker, envelopes
        self._environment, self._lock, self._closed = environment, lock, False

    @property
    def read_only(self) -> bool:
        """Whether this handle may only read."""
        return self._lock is None

    # -- making, opening, closing

    @classmethod
    def create(
        cls,
        path: str | Path,
        record: StepRecord,
        *,
        blobs: Mapping[str, bytes],
        weights: str | None = None,
        map_size: int = environments.MAP_SIZE,
        encrypt: bool = False,
    ) -> EditLog:
        """A new store whose step 0 is `record`; it appears under its name complete or not at all.

        map_size: bytes of address space; grown when it is full. encrypt: with the key that LIFELONG_KEY_FILE names.
        Other arguments as of `append`. Raises UsageError where something is there already that is not an empty folder.
        """
        path = Path(path).absolute()
        require_free(path)
        store_id = uuid.uuid4().hex
        envelopes = Envelopes.new(path, store_id) if encrypt else IN_THE_CLEAR
        marker = StoreMarker(
            store_id=store_id,
            created=datetime.now(UTC).isoformat(),
            encryption=msgspec.UNSET if envelopes.encryption is None else envelopes.encryption,
            migrations=names(),
        )
        encoded = msgspec.json.encode(marker)
        try:
            with replace_dir_atomic(path, only_new=True) as building:
                environment = environments.acquire(building, read_only=False, create=True, map_size=map_size)
                with cls(building, marker, environment, envelopes, WriterLock(building / LOCK_FILE)) as log:
                    environment.write(lambda t: log._tables(t).put("meta", MARKER, encoded))
                    log.append(record, facts={}, blobs=blobs, weights=weights)
                write_marker(building, marker)
        except FileExistsError:
            require_free(path)  # somebody was faster
            raise
        except OSError as error:
            raise StoreError(f"cannot make a store at {path}: {error}") from error
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path, *, read_only: bool = False, timeout: float = 5.0) -> EditLog:
        """An existing store. `timeout`: seconds to wait for another writer.

        Raises StoreError where there is none or its schema is newer, StoreLockedError where somebody is writing to
        it, StoreDamagedError where it is not what was last acknowledged.
        """
        path = Path(path).absolute()
        began = _head_file(path)
        try:
            return cls._open(path, read_only, timeout)
        except StoreDamagedError:
            if _head_file(path) == began:
                raise
        return cls._open(path, read_only, timeout)  # another store took the place of the one that was being opened

    @classmethod
    def _open(cls, path: Path, read_only: bool, timeout: float) -> EditLog:
        marker = read_marker(path)
        with contextlib.ExitStack() as undo:
            lock = None if read_only else WriterLock(path / LOCK_FILE, timeout)
            if lock is not None:
                undo.callback(lock.release)
            acknowledged = read_acknowledged(path)  # before the database, to which a writer may be adding steps
            environment = environments.acquire(path, read_only=read_only)
            undo.callback(environments.release, environment)
            with environment.reading() as transaction:
                inside = read_inside(path, Tables(environment, transaction))
                envelopes = Envelopes.of(path, inside, marker)
                tables = Tables(environment, transaction, envelopes)
                check_identity(path, marker, inside, acknowledged, tables)
                head = tables.head()
                if not read_only:
                    tables.check_derived(tables.step(number)[0] for number in range(head.step + 1))
            if head.step > acknowledged.step and not read_only:  # killed between the commit and HEAD
                write_acknowledged(path, marker.store_id, head)
            log = cls(path, marker, environment, envelopes, lock)
            if marker.encryption != inside.encryption and not read_only:  # killed in `rekey`
                log._put_marker(msgspec.structs.replace(marker, encryption=envelopes.encryption or msgspec.UNSET))
            undo.pop_all()
        return log

    def close(self) -> None:
        """Let go of the database and of the writer's lock; closing twice is harmless."""
        if not self._closed:
            self._closed = True
            environments.release(self._environment)
            if self._lock is not None:
                self._lock.release()

    def __enter__(self) -> EditLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- writing

    def append(
        self,
        record: StepRecord,
        *,
        facts: Mapping[str, bytes],
        blobs: Mapping[str, bytes | Callable[[], bytes]],
        weights: str | None = None,
        keys: Callable[[], Iterable[bytes]] | None = None,
    ) -> Head:
        """Commit one step: record, facts, blobs and the new head together; on return all of it is on the disk.

        facts: digest → encoded fact. blobs: `digest_bytes` → bytes, or what makes them as they are written. weights:
        digest of the blob that holds ΔW of the new head; that of the former head is dropped unless a step names it.
        keys: makes blobs of keys one by one, each written before the next is made, and all named in the record; called
        anew where the map had to be grown.
        What the record names as dropped or purged goes in the same transaction.
        The first step added to a store of an earlier schema runs the migrations that are due, in the same transaction.
        Raises StoreError where the record does not follow the head, or nothing could be written.
        """

        def commit(transaction: object) -> Head:
            tables = self._tables(transaction)
            former = follow(tables, record)
            self._migrate(tables)
            for digest, fact in facts.items():
                tables.put("facts", digest.encode(), fact, overwrite=False)
            for digest, blob in blobs.items():
                tables.put_blob(digest, blob() if callable(blob) else blob)
            head = enter(tables, record if keys is None else with_keys(tables, record, keys()), weights)
            if former.weights is not None and former.weights != weights:
                tables.drop_unreferenced(former.weights)
            return head

        self._require_writable()
        self._environment.open_later(MEASUREMENTS)
        head = self._environment.write(commit)
        write_acknowledged(self.path, self.marker.store_id, head)
        self._keep_marker()
        return head

    def consume(self, state: int, places: Sequence[Place]) -> None:
        """Keep in mind that places were consumed at the state of a step with nothing to do there, durably.

        Written twice: where the newest meta page is damaged, LMDB takes the state before for the newest. Of a step
        HEAD would tell; of this nothing else would.
        """
        self._require_writable()
        for _ in range(2):
            self._environment.write(lambda t: self._tables(t).consume_idle(state, places))

    def keep_measurement(self, measurement: Measurement) -> None:
        """Keep what was measured of a step's state, durably, in the place of what was there of that step.

        Raises UsageError where there is no such step.
        """
        self._require_writable()
        self.step(measurement.step)

        def commit(transaction: object) -> None:
            tables = self._tables(transaction)
            self._migrate(tables)
            tables.put_measurement(measurement)

        self._environment.open_later(MEASUREMENTS)
        self._environment.write(commit)
        self._keep_marker()

    def _migrate(self, tables: Tables) -> None:
        """Run the migrations that are due, and name them in the marker inside, all in the transaction of `tables`.

        That marker says which are: the one beside the database may be behind it, by a writer that was killed.
        """
        inside = read_inside(self.path, tables)
        marker = migrated(inside)
        if marker is not inside:
            for one in due(inside):
                one.run(tables)
            tables.put("meta", MARKER, msgspec.json.encode(marker))

    def _keep_marker(self) -> None:
        """Let the marker beside the database say what the one inside does since a write."""
        marker = migrated(self.marker)
        if marker is not self.marker:
            with contextlib.suppress(OSError):  # tried again with the next step; the database says it already
                write_marker(self.path, marker)
                self.marker = marker

    def rekey(self, key_file: str | Path) -> None:
        """Let the key in another file open the store, and the present one no longer; the data stay as they are.

        Killed meanwhile, either key opens it, and the next writer lets the one that it has. Raises StoreKeyError where
        the file holds no key, UsageError where the store is not encrypted, StoreError where nothing can be written.
        """
        self._require_writable()
        if self.envelopes.encryption is None:
            raise UsageError(f"{self.path} is not encrypted; expected an encrypted store, which `init --encrypt` makes")
        encryption = self.envelopes.rewrapped(read_key_file(key_file))
        self._put_marker(msgspec.structs.replace(self.marker, encryption=encryption))

    def _put_marker(self, marker: StoreMarker) -> None:
        """Write a marker into the database, then beside it."""
        for _ in range(2):  # as in `consume`
            self._environment.write(lambda t: self._tables(t).put("meta", MARKER, msgspec.json.encode(marker)))
        try:
            write_marker(self.path, marker)
        except OSError as error:
            raise StoreError(
                f"the marker beside the database of {self.path} could not be written: {error.strerror}; "
                "make room and do it again; until then the former key opens the store as well"
            ) from error
        self.marker = marker

    def put_place(self, source: str | None) -> None:
        """Keep where the model lies now, durably; None: where `init` found it. Raises StoreError."""
        self._require_writable()
        write_place(self.path, source, self.envelopes)

    def _require_writable(self) -> None:
        if self._lock is None or self._closed:
            raise StoreError(f"{self.path} is {'closed' if self._closed else 'open read-only'}; open it for writing")

    # -- reading

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Tables]:
        if self._closed:
            raise StoreError(f"{self.path} is closed; open it again")
        with self._environment.reading() as transaction:
            yield self._tables(transaction)

    def _tables(self, transaction: object) -> Tables:
        return Tables(self._environment, transaction, self.envelopes)

    def head(self) -> Head:
        """The last committed step."""
        with self._reading() as tables:
            return tables.head()

    def step(self, number: int) -> StepRecord:
        """One step. Raises UsageError where there is none of that number."""
        with self._reading() as tables:
            last = tables.head().step
            if not 0 <= number <= last:
                raise UsageError(f"there is no step {number}; the log holds steps 0 to {last}")
            return tables.step(number)[0]

    def steps(self, start: int = 0) -> list[StepRecord]:
        """The steps from `start` to the head, of one snapshot, with the chain of their digests verified."""
        found: list[StepRecord] = []
        with self._reading() as tables:
            head = tables.head()
            chain = tables.step(start - 1)[1] if 0 < start <= head.step else ""
            for number in range(start, head.step + 1):
                record, digest = tables.step(number)
                if record.step != number or record.previous != chain:
                    raise StoreDamagedError(f"step {number} does not follow step {number - 1} in the chain of digests")
                found.append(record)
                chain = digest
        if found and chain != head.chain:
            raise StoreDamagedError(f"the chain of steps ends in {chain}, but the head says {head.chain}")
        return found

    def facts(self, digests: Sequence[str]) -> dict[str, bytes]:
        """Encoded facts by digest. Raises StoreDamagedError where one is missing or damaged."""
        with self._reading() as tables:
            return {digest: tables.need("facts", digest.encode()) for digest in digests}

    def blob(self, digest: str) -> bytes:
        """A blob, verified against its digest. Raises StoreDamagedError where it is missing or damaged."""
        with self._reading() as tables:
            return tables.blob(digest)

    def has_blob(self, digest: str) -> bool:
        """Whether a blob is kept."""
        with self._reading() as tables:
            return tables.has_blob(digest)

    def blob_size(self, digest: str) -> int:
        """How many bytes a blob has, 0 where it is not kept."""
        with self._reading() as tables:
            return tables.blob_size(digest)

    def blob_sizes(self) -> dict[str, int]:
        """The blobs that are kept, with how many bytes each has."""
        with self._reading() as tables:
            return tables.blob_sizes()

    def consumed(self, file_digest: str, number: int) -> list[Consumed]:
        """Every consumption of a place, in the order of the steps, rolled back or not."""
        with self._reading() as tables:
            return tables.consumed(file_digest, number)

    def idle(self) -> dict[int, list[Place]]:
        """By step: the places that were consumed at its state with nothing to do there."""
        with self._reading() as tables:
            return tables.idle()

    def measurements(self) -> list[Measurement]:
        """All that was measured, in the order of the steps. Raises StoreDamagedError where one is damaged."""
        if not self._closed:
            self._environment.open_later(MEASUREMENTS)  # another process may have made it meanwhile
        with self._reading() as tables:
            return list(tables.measurements())

    def place(self) -> str | None:
        """Where the model lies now, None where `init` found it. Raises StoreDamagedError where that cannot be read."""
        return read_place(self.path, self.envelopes)

    def copy_database(self, folder: Path) -> None:
        """Write the last committed state, without free pages, as `data.mdb` into a folder that has none.

        A writer may go on meanwhile. Raises StoreError where the copy cannot be made. It is not forced to disk.
        """
        if self._closed:
            raise StoreError(f"{self.path} is closed; open it again")
        self._environment.copy(folder)

    def size(self) -> int:
        """Bytes that the store takes on the disk, caches included."""
        return sum(file.stat().st_blocks * 512 for file in self.path.rglob("*") if file.is_file())


def _head_file(path: Path) -> bytes | None:
    try:
        return (path / HEAD_FILE).read_bytes()
    except OSError:
        return None


def require_free(path: Path) -> None:
    """Raise UsageError where something is at `path` that is not an empty folder."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"{path} is already there; choose another folder, or use the store that is in it")


def require_place(folder: Path, *, encrypt: bool = False) -> None:
    """Raise UsageError where something is at `folder`, StoreError where the folder could not be made.

    encrypt: also StoreKeyError where there is no key for an encrypted store.
    """
    if encrypt:
        keys_at_hand(folder)
    try:
        require_free(folder)
        near = next(parent for parent in folder.absolute().parents if parent.exists())
        with tempfile.TemporaryDirectory(dir=near, prefix=".lifelong-edit-"):
            pass  # modes, owners and mounts forbid in many ways: trying is the one answer that holds
    except OSError as error:
        raise StoreError(
            f"cannot make a store at {folder}: {error.strerror}; expected a folder that can be made; choose another"
        ) from error
