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


class WriterLock:
    """An advisory lock on a file (flock), held until `release` or the end of the process, kill included.

    The file stays behind when the lock is released: removing it would let two processes lock two
    different files of the same name.
    """

    def __init__(self, path: Path, timeout: float = 5.0) -> None:
        """Take the lock. Raises StoreLockedError after `timeout` seconds, naming the holder's pid."""
        self._path = path
        try:
            self._fd: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreError(
                f"cannot write to the store: {path}: {error.strerror}; "
                "reading works, writing needs permission there (in Python: open it read-only)"
            ) from error
        try:
            self._take(timeout)
        except BaseException:
            os.close(self._fd)
            self._fd = None
            raise

    def _take(self, timeout: float) -> None:
        assert self._fd is not None
        deadline = time.monotonic() + timeout
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
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, str(os.getpid()).encode(), 0)

    def _holder(self) -> str:
        assert self._fd is not None
        return os.pread(self._fd, 20, 0).decode("ascii", "replace") or "unknown"

    def release(self) -> None:
        """Let go of the lock; releasing twice is harmless."""
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = None
