"""Files and folders that appear whole or not at all, whatever kills the writer or the machine.

Everything is written under another name beside its place, forced to disk, renamed, and the renaming
forced to disk in turn. A rename without those barriers can survive a power cut while the data do not.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write a file so that readers, and a crash at any moment, find the old content or the new one, never a part.

    Raises OSError; the old file is then as it was and nothing is left beside it.
    """
    partial = _partial(path)
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    fsync_path(path.parent)


@contextmanager
def replace_dir_atomic(target: Path, *, only_new: bool = False) -> Iterator[Path]:
    """Fill the folder that the context gives; when it closes, `target` is that folder, all of it on disk.

    If the context raises, `target` is as it was and nothing is left beside it. If the process is killed,
    `target` is the old folder or the new one, and what it leaves beside it goes with the next call.
    Whether an existing `target` may be replaced is for the caller to decide; with `only_new` it never is:
    FileExistsError where a folder with anything in it, or a file, stands there when the new one is complete.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target)
    partial = _partial(target)
    partial.mkdir()
    try:
        yield partial
        fsync_tree(partial)
        _move_in(partial, target) if only_new else _move_into_place(partial, target)
        fsync_path(target.parent)
    finally:
        # Where a folder was replaced this is the old one, else nothing.
        shutil.rmtree(partial, ignore_errors=True)


def exchange_dirs(one: Path, other: Path) -> None:
    """Let two folders side by side change names, on the disk when it returns. On Linux that is a single step.

    Elsewhere `other` is missing for a moment; should the process die in it, `remove_leftovers` puts the old one back.
    Raises OSError; both are then where they were.
    """
    _change_names(one, other)
    fsync_path(other.parent)


def fsync_tree(folder: Path) -> None:
    """Force a folder and all that is in it to disk. Raises OSError."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            fsync_path(Path(parent) / name)
        fsync_path(Path(parent))


def remove_leftovers(target: Path) -> None:
    """Remove what writers of `target` that are no longer alive left beside it; put back what they had moved away."""
    old = _replaced(target)
    if old.exists() and not target.exists():
        old.rename(target)
    elif old.exists():
        shutil.rmtree(old)
    pattern = re.compile(re.escape(f".{target.name}.partial-") + r"(\d+)")
    for entry in target.parent.iterdir():
        match = pattern.fullmatch(entry.name)
        if match is None or _alive(int(match[1])):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)


def fsync_path(path: Path) -> None:
    """Force a file's content, or a folder's entries, to disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial-{os.getpid()}")


def _replaced(target: Path) -> Path:
    return target.with_name(f".{target.name}.replaced")


def _alive(pid: int) -> bool:
    """Whether another process of that number is running here; one's own leftovers are from an earlier life."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _move_in(partial: Path, target: Path) -> None:
    """Rename in a single step, which no system does onto a folder that is not empty."""
    try:
        partial.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        raise


def _move_into_place(partial: Path, target: Path) -> None:
    if target.exists():
        _change_names(partial, target)
    else:
        partial.rename(target)


def _change_names(one: Path, other: Path) -> None:
    if _exchange(one, other):
        return
    # Where the system cannot exchange two folders there is a moment without `other`; should the process die in it,
    # `remove_leftovers` puts the old folder back.
    old = _replaced(other)
    other.rename(old)
    try:
        one.rename(other)
    except BaseException:
        old.rename(other)
        raise
    old.rename(one)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in a single step; False where system or file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(other))
