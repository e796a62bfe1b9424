"""One writer at a time, refused with the holder's pid instead of blocking for ever inside LMDB."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path

from lifelong_edit.errors import StoreError, StoreLockedError

LOCK_FILE = "writer.lock"
POLL = 0.05
"""Seconds between two attempts to take a lock that somebody holds."""


def holder(path: Path) -> str | None:
    """The process that holds the lock on a file; None where nobody does, or nobody can tell."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read(20).decode("ascii", "replace") or "unknown"
    return None


class WriterLock:
    """An advisory lock on a file (flock), held until `release` or the end of the process, kill included.

    The file stays behind when the lock is released: removing it would let two processes lock two
    different files of the same name.
    """

    def __init__(self, path: Path, timeout: float = 5.0) -> None:
        """Take the lock. Raises StoreLockedError after `timeout` seconds, naming the holder's pid."""
        self._path = path
        self._fd: int | None = None
        deadline = time.monotonic() + timeout
        while self._fd is None:
            try:
                self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise StoreError(
                    f"cannot write to the store: {path}: {error.strerror}; "
                    "reading works, writing needs permission there (in Python: open it read-only)"
                ) from error
            try:
                self._take(deadline, timeout)
                there = self._is_there()
            except BaseException:
                self.release()
                raise
            if not there:  # the holder has put another folder in the place of this one: its lock is the one to take
                self.release()
        with contextlib.suppress(OSError):  # the lock is held all the same; only its holder's name is not there to read
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, str(os.getpid()).encode(), 0)

    def _take(self, deadline: float, timeout: float) -> None:
        assert self._fd is not None
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise StoreLockedError(
                        f"{self._path.parent} is being written by process {self._holder()}; "
                        f"gave up after {timeout:g} s; wait for it to finish; commands that only read work meanwhile"
                    ) from None
                time.sleep(POLL)

    def _is_there(self) -> bool:
        """Whether the file that is locked is the one at the path."""
        assert self._fd is not None
        mine = os.fstat(self._fd)
        try:
            there = self._path.stat()
        except FileNotFoundError:
            return False
        return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)

    def _holder(self) -> str:
        assert self._fd is not None
        return os.pread(self._fd, 20, 0).decode("ascii", "replace") or "unknown"

    def release(self) -> None:
        """Let go of the lock; releasing twice is harmless."""
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = None
