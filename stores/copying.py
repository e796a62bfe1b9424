"""Copies of a store: one consistent state of it, whole and on the disk before it has its name."""

from __future__ import annotations

from pathlib import Path

import msgspec

from lifelong_edit.atomic import replace_dir_atomic
from lifelong_edit.errors import StoreDamagedError, StoreError, UsageError
from lifelong_edit.stores import environment as environments
from lifelong_edit.stores.checking import require_followable
from lifelong_edit.stores.fsck import fsck
from lifelong_edit.stores.identity import read_marker, write_acknowledged, write_marker
from lifelong_edit.stores.log import EditLog
from lifelong_edit.stores.schema import StoreMarker
from lifelong_edit.stores.tables import Head, Tables


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
            _require_sound(path, building)
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


def _require_sound(path: Path, copy: Path) -> None:
    report = fsck(copy)
    if not report.sound:
        first = report.findings[0]
        raise StoreDamagedError(
            f"{path} is damaged: {first.record}: {first.problem}; no backup was made; see `lifelong-edit fsck`"
        )


def _require_apart(path: Path, target: Path) -> None:
    """Raise UsageError where a backup cannot be at `target`."""
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise UsageError(f"{target} is already there; choose another name for the backup")
    if target.resolve().is_relative_to(path.resolve()):
        raise UsageError(f"{target} lies in the store that it would be a backup of; choose a folder outside of it")
