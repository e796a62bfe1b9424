"""An LMDB environment that notices what LMDB itself does not: truncation, forks, a store deleted while open."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import lmdb

from lifelong_edit.errors import StoreDamagedError, StoreError
from lifelong_edit.stores.filesystem import warn_of_network
from lifelong_edit.stores.metapages import check_meta_pages, meta_of
from lifelong_edit.stores.soundness import check_pages

T = TypeVar("T")

MAP_SIZE = 1 << 40
"""Bytes of address space reserved for a new store; the file is sparse and takes what it holds."""
MEASUREMENTS = "measurements"
TABLES = ("meta", "steps", "facts", "blobs", "references", "places", "head", MEASUREMENTS)
LATER = (MEASUREMENTS,)
"""Tables that a store of an earlier schema has not, until something is written to them."""
_META_PAGES = 2
_SMALLEST_PAGE = 4096
_ATTEMPTS = 100

_UNREADABLE = (
    lmdb.CorruptedError,
    lmdb.CursorFullError,
    lmdb.InvalidError,
    lmdb.NotFoundError,
    lmdb.PageNotFoundError,
    lmdb.VersionMismatchError,
)

_OPEN: dict[tuple[int, int], Environment] = {}
_GUARD = threading.Lock()


class Environment:
    """One per process and database, shared by its openers: LMDB must not be opened twice in a process."""

    def __init__(self, folder: Path, *, read_only: bool, create: bool, map_size: int) -> None:
        self.folder, self.read_only, self.users = folder, read_only, 0
        self._made: list[str] = []
        self.pid = os.getpid()
        if not create:
            _refuse_short(folder)
        before = None if create else _inode(folder)
        try:
            # A folder that may only be read has no room for LMDB's table of readers; a writer elsewhere could then
            # reuse pages under a long read, which the digests would notice.
            table = create or _may_write(folder / "lock.mdb")
            self.env: Any = lmdb.open(
                str(folder),
                map_size=map_size,
                max_dbs=len(TABLES),
                max_readers=1024,
                readonly=read_only,
                create=create,
                lock=table or not read_only,
                subdir=True,
            )
            self._refuse_truncated()
            if not create:
                self._refuse_damaged()
            self.tables = {name: self.env.open_db(name.encode(), create=create) for name in TABLES if name not in LATER}
            for name in LATER:
                self.open_later(name, create=create)
        except _UNREADABLE as error:
            self._discard()
            raise StoreDamagedError(
                f"{folder} holds no readable database ({error}); restore it from a backup"
            ) from error
        except lmdb.Error as error:
            self._discard()
            raise StoreError(f"cannot open {folder}: {error}") from error
        except BaseException:
            self._discard()
            raise
        self.inode = _inode(folder)
        if before not in (None, self.inode):
            self._discard()
            raise StoreError(f"{folder} was replaced while it was being opened; open it again")
        warn_of_network(folder)

    def open_later(self, name: str, *, create: bool = False) -> None:
        """Open a table of LATER where it is there, or make it. Not within a transaction."""
        if name not in self.tables:
            with contextlib.suppress(lmdb.NotFoundError):
                self.tables[name] = self.env.open_db(name.encode(), create=create)

    def make_table(self, name: str, transaction: Any) -> None:
        """Make a table of LATER within a write transaction, unless it is there; it comes and goes with that."""
        if name not in self.tables:
            self.tables[name] = self.env.open_db(name.encode(), txn=transaction, create=True)
            self._made.append(name)

    def _discard(self) -> None:
        if hasattr(self, "env"):
            self.env.close()

    def _refuse_truncated(self) -> None:
        """Reading a page beyond the end of the file would kill the process with SIGBUS."""
        page = int(self.env.stat()["psize"])
        needed = (int(self.env.info()["last_pgno"]) + 1) * page
        found = (self.folder / "data.mdb").stat().st_size
        if found < needed:
            raise StoreDamagedError(
                f"{self.folder / 'data.mdb'} is truncated: {found} bytes of at least {needed}; restore it from a backup"
            )

    def _refuse_damaged(self) -> None:
        """Walk the pages of one snapshot, which stay what they are while its transaction lasts."""
        data, page = self.folder / "data.mdb", int(self.env.stat()["psize"])
        check_meta_pages(data, page)
        for _ in range(_ATTEMPTS):
            with self._begin_reading() as transaction:
                meta = meta_of(data, page, transaction.id())
                if meta is not None:  # else another process has committed twice since
                    check_pages(data, page, meta)
                    return
        raise StoreDamagedError(f"{data} has no meta page of its last transaction; restore the store from a backup")

    def check_usable(self) -> None:
        """Raise StoreError where this handle must not be used: after a fork, or once the store's folder is gone."""
        if os.getpid() != self.pid:
            raise StoreError(
                f"the store was opened by process {self.pid} and is used in its fork {os.getpid()}; "
                "open it after forking, or start the process with spawn"
            )
        try:
            there = _inode(self.folder)
        except OSError:
            raise StoreError(f"{self.folder} was deleted while it was open; nothing can be written to it") from None
        if there != self.inode:
            raise StoreError(f"{self.folder} was replaced while it was open; open it again")

    @contextlib.contextmanager
    def reading(self) -> Iterator[Any]:
        """A read transaction: one snapshot, whatever a writer does meanwhile."""
        self.check_usable()
        try:
            transaction = self._begin_reading()
        except lmdb.Error as error:
            raise StoreError(f"cannot read {self.folder}: {error}") from error
        with transaction:
            try:
                yield transaction
            except lmdb.Error as error:  # a snapshot that has begun asks for no room: what fails then are its pages
                raise StoreDamagedError(f"{self.folder} has damaged pages ({error}); restore from a backup") from error

    def _begin_reading(self) -> Any:
        try:
            return self.env.begin()
        except lmdb.MapResizedError:  # another process has grown the store
            self.env.set_mapsize(0)
            return self.env.begin()

    def copy(self, folder: Path) -> None:
        """Write the last committed state into a folder, compacted. Raises StoreError where that fails."""
        self.check_usable()
        try:
            self.env.copy(str(folder), compact=True)
        except lmdb.Error as error:
            raise StoreError(f"cannot copy {self.folder} to {folder}: {error}; make room, or see `fsck`") from error

    def write(self, change: Callable[[Any], T]) -> T:
        """Run `change` in one write transaction; on return it is on the disk (fsync).

        A full map kills the transaction, so it is aborted, the map is doubled and the whole change is run again.
        Raises StoreError where the disk refuses; nothing of the change is kept then.
        """
        self.check_usable()
        self.env.reader_check()  # a reader that was killed pins every page that was in use when it began
        while True:
            try:
                with self.env.begin(write=True) as transaction:
                    result = change(transaction)
                self._made.clear()
                return result
            except lmdb.MapFullError:
                self.env.set_mapsize(2 * int(self.env.info()["map_size"]))
            except lmdb.MapResizedError:
                self.env.set_mapsize(0)
            except lmdb.Error as error:
                raise StoreError(
                    f"the step was not written to {self.folder}: {error}; "
                    "make room or mend the disk, then open the store again"
                ) from error
            finally:
                while self._made:  # their handles went with the transaction
                    del self.tables[self._made.pop()]


def _may_write(file: Path) -> bool:
    return os.access(file, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def _refuse_short(folder: Path) -> None:
    data = folder / "data.mdb"
    try:
        size = data.stat().st_size
    except FileNotFoundError:
        raise StoreDamagedError(f"{data} is missing; restore the store from a backup") from None
    if size < _META_PAGES * _SMALLEST_PAGE:
        raise StoreDamagedError(f"{data} is truncated to {size} bytes; restore the store from a backup")


def _inode(folder: Path) -> tuple[int, int]:
    found = (folder / "data.mdb").stat()
    return found.st_dev, found.st_ino


def acquire(folder: Path, *, read_only: bool, create: bool = False, map_size: int = 0) -> Environment:
    """The process's environment of a database, opened or shared. `map_size` 0 keeps what the store has."""
    with _GUARD:
        key = None if create or not (folder / "data.mdb").exists() else _inode(folder)
        found = None if key is None else _OPEN.get(key)
        if found is not None:
            found.check_usable()
            if found.read_only and not read_only:
                raise StoreError(f"{folder} is open read-only in this process; close it before opening it for writing")
            found.users += 1
            return found
        made = Environment(folder, read_only=read_only, create=create, map_size=map_size)
        made.users = 1
        _OPEN[made.inode] = made
        return made


def release(environment: Environment) -> None:
    """Give an environment back; it is closed with its last user."""
    with _GUARD:
        environment.users -= 1
        if environment.users > 0 or environment.pid != os.getpid():
            return
        _OPEN.pop(environment.inode, None)
        environment.env.close()
