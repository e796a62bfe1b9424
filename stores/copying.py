"""Copies of a store: one consistent state of it, whole and on the disk before it has its name."""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO

import msgspec

from lifelong_edit.atomic import exchange_dirs, fsync_tree, replace_dir_atomic
from lifelong_edit.errors import StoreError, UsageError
from lifelong_edit.stores import environment as environments
from lifelong_edit.stores.checking import require_followable
from lifelong_edit.stores.fsck import require_sound
from lifelong_edit.stores.identity import (
    HEAD_FILE,
    MARKER_FILE,
    read_acknowledged,
    read_marker,
    write_acknowledged,
    write_marker,
)
from lifelong_edit.stores.lock import LOCK_FILE, WriterLock
from lifelong_edit.stores.log import EditLog
from lifelong_edit.stores.pages import PageFile
from lifelong_edit.stores.schema import StoreMarker
from lifelong_edit.stores.tables import Head, Tables

UNFINISHED = "UNFINISHED"
"""In a folder beside the store: it was to take the store's place, and has not."""
_OWN = ("data.mdb", "lock.mdb", LOCK_FILE, HEAD_FILE, MARKER_FILE, UNFINISHED, "index")
"""What a copy makes anew, or does without."""
_NO_BACKUP = "no backup was made; see `lifelong-edit fsck`"


class Backup(msgspec.Struct, kw_only=True):
    """A copy that was made. head: its last step; bytes: of its database."""

    path: str
    head: int
    chain: str
    bytes: int


def backup(path: str | Path, target: str | Path) -> Backup:
    """Copy a store as it stands into a new folder, a store as well; a writer may go on meanwhile.

    The copy is one snapshot, without free pages and caches. It is examined as by `fsck` and forced to disk before it
    appears under its name; interrupted, nothing does. Raises UsageError where something is at `target`, StoreError
    where it cannot be written, StoreDamagedError where the store is damaged: nothing is left at `target` then.
    """
    path, target = Path(path).absolute(), Path(target).absolute()
    read_marker(path)
    _require_apart(path, target)
    try:
        with replace_dir_atomic(target, only_new=True) as building:
            head = copy_store(path, building)
            require_sound(building, _NO_BACKUP, path)
    except FileExistsError:
        raise UsageError(f"{target} is already there; choose another name for the backup") from None
    except OSError as error:
        raise StoreError(f"cannot write a backup to {target}: {error.strerror}; make room or choose another") from error
    return Backup(path=str(target), head=head.step, chain=head.chain, bytes=(target / "data.mdb").stat().st_size)


def copy_store(path: Path, folder: Path) -> Head:
    """The last committed state of a store in an empty folder, with HEAD and marker of what the copy holds; its head.

    Raises StoreError where LMDB cannot copy it. What is written is not yet forced to disk, but for the two files.
    """
    require_followable(path)
    with EditLog.open(path, read_only=True) as log:
        log.copy_database(folder)
    environment = environments.acquire(folder, read_only=True)
    try:
        with environment.reading() as transaction:
            tables = Tables(environment, transaction)
            marker, head = msgspec.json.decode(tables.marker(), type=StoreMarker), tables.head()
    finally:
        environments.release(environment)
    write_acknowledged(folder, marker.store_id, head)
    write_marker(folder, marker)  # last: without it the folder is no store
    return head


def shrink(log: EditLog, *, overwrite: bool = False) -> None:
    """Put a copy without free pages in the place of a store that this process has open for writing.

    `log` has to be closed afterwards, and so has every other handle: each says so when it is used. The store is at its
    path at every moment, the old one or the new one, and both hold the same. overwrite: fill what was replaced with
    zeros, on the disk, before it is let go of, and in the copy what its records leave over. Raises StoreError where
    its folder cannot be replaced, which leaves it as it was.
    """
    path = log.path
    try:
        with contextlib.ExitStack() as stack:
            former = [stack.enter_context(file.open("r+b")) for file in _data_files(path)] if overwrite else []
            _shrink(path, overwrite)
            for file in former:
                _fill_with_zeros(file)
    except OSError as error:
        raise StoreError(
            f"the free pages of {path} were not given back, because its folder cannot be replaced: {error.strerror}; "
            "later steps use them; make room beside it, or let it be no mount point"
        ) from error


def _data_files(path: Path) -> list[Path]:
    """The database, and the files of the caches."""
    return [path / "data.mdb", *(file for file in (path / "index").glob("*") if file.is_file())]


def _fill_with_zeros(file: IO[bytes]) -> None:
    """Every block that a file has, replaced or not: it is open still."""
    left = os.fstat(file.fileno()).st_size
    file.seek(0)
    while left > 0:
        left -= file.write(bytes(min(left, 1 << 20)))
    file.flush()
    os.fsync(file.fileno())


def _blank(data: Path) -> None:
    """Fill with zeros what the records of a database leave over: LMDB copies whole pages, with what was in them."""
    with PageFile(data) as pages:
        gaps = pages.gaps()
    with data.open("r+b") as file:
        for gap in gaps:
            file.seek(gap.offset)
            file.write(bytes(gap.size))


def _shrink(path: Path, overwrite: bool) -> None:
    with contextlib.ExitStack() as stack, replace_dir_atomic(path) as building:
        copy_store(path, building)
        if overwrite:
            _blank(building / "data.mdb")
        require_sound(building, _NO_BACKUP, path)
        for entry in path.iterdir():
            if entry.name not in _OWN:
                (shutil.copytree if entry.is_dir() else shutil.copy2)(entry, building / entry.name)
        shutil.copystat(path, building)
        # Nobody writes to the new one before all of it is in place.
        stack.callback(WriterLock(building / LOCK_FILE).release)


def replace_keeping(path: Path, fill: Callable[[Path], None], timeout: float = 5.0) -> Path:
    """Put a new store in the place of the one at `path`, and keep that beside it; where it is kept.

    fill: makes the new one in an empty folder. A folder of the name `NAME.replaced-N` is filled, and then changes names
    with the store, in a single step: at every moment one of the two stands there whole. Killed before that, it has a
    file `UNFINISHED` in it, and goes with the next call. Raises StoreLockedError where somebody is writing, StoreError
    where the folder cannot be replaced, and what `fill` raises: the store is then as it was.
    """
    lock = WriterLock(path / LOCK_FILE, timeout)
    try:
        (path / UNFINISHED).unlink(missing_ok=True)  # killed when all was done but this
        taken = [entry for entry in path.parent.glob(f"{glob.escape(path.name)}.replaced-*") if entry.is_dir()]
        for entry in [entry for entry in taken if (entry / UNFINISHED).exists() or not any(entry.iterdir())]:
            shutil.rmtree(entry)
        kept = next(p for n in itertools.count(1) if not (p := path.with_name(f"{path.name}.replaced-{n}")).exists())
        kept.mkdir()
        try:
            (kept / UNFINISHED).touch()
            fill(kept)
            shutil.copystat(path, kept)
            beside = WriterLock(kept / LOCK_FILE)  # nobody writes to the new one before it is in place
            try:
                fsync_tree(kept)
                exchange_dirs(kept, path)
            finally:
                beside.release()
        except BaseException:
            if (kept / UNFINISHED).exists():
                shutil.rmtree(kept, ignore_errors=True)
            raise
        (path / UNFINISHED).unlink()
    except OSError as error:
        raise StoreError(
            f"{path} cannot be replaced: {error.strerror}; make room beside it, or let it be no mount point"
        ) from error
    finally:
        lock.release()
    return kept


def ids_at(path: Path) -> set[str]:
    """The ids of stores that what is at `path` says to be of, damaged as it may be."""
    found: set[str] = set()
    with contextlib.suppress(StoreError):
        found.add(read_marker(path).store_id)
    with contextlib.suppress(StoreError, OSError):
        found.add(read_acknowledged(path).store_id)
    return found


def _require_apart(path: Path, target: Path) -> None:
    """Raise UsageError where a backup cannot be at `target`."""
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise UsageError(f"{target} is already there; choose another name for the backup")
    if target.resolve().is_relative_to(path.resolve()):
        raise UsageError(f"{target} lies in the store that it would be a backup of; choose a folder outside of it")
