"""Processes that end before their time: who it was, what it said last, and that no other waits for it."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lifelong_edit.errors import WorldError

EVERY = 0.2
"""Seconds between two looks at the others."""
GRACE = 3.0
"""Seconds in which a process that has lost another ends by itself, with what it holds let go of in order."""
PATIENCE = 6.0
"""The same where the other has told why it ends; and how long one that has failed waits for process 0."""


class Marks:
    """What a process that ends leaves behind for the others, in the store that they all have at hand."""

    def __init__(self, store: Any, rank: int) -> None:
        self._store, self._rank = store, rank

    def leave(self, code: int, sentence: str) -> None:
        """This process ends with an exit code, and says so."""
        with contextlib.suppress(Exception):  # whoever kept the store may be the one that has ended
            self._store.set(f"left/{self._rank}", f"{code} {sentence}")

    def of(self, rank: int) -> str | None:
        """What process `rank` left behind: "" where it had nothing to say, None where it left nothing."""
        with contextlib.suppress(Exception):
            if self._store.check([f"left/{rank}"]):
                said: str = self._store.get(f"left/{rank}").decode(errors="replace")
                return said.partition(" ")[2]
        return None


class Watch:
    """Looks after the other processes while this one works.

    A process that waits for another learns at once that it has ended, by the connection. One that is at work would
    learn it at the next meeting: after GRACE it is ended here, as abruptly as the other was. What it was doing was not
    committed, or is, as a whole.
    """

    def __init__(self, rank: int, size: int, marks: Marks, pids: Mapping[int, int], stderr: int) -> None:
        """pids: of those that are known so far, by rank. stderr: the file in which the user is told."""
        self.rank, self.size, self.marks, self._stderr = rank, size, marks, stderr
        self.pids = {of: pid for of, pid in pids.items() if of != rank}
        self._ended = threading.Event()
        threading.Thread(target=self._look, daemon=True, name="lifelong-edit-watch").start()

    def end(self) -> None:
        """No more."""
        self._ended.set()

    def lost(self) -> WorldError:
        """What is to be said where another process has ended."""
        left = self._left()
        rank = min(left, default=None)
        who = f"one process of {self.size}" if rank is None else f"process {rank} of {self.size}"
        why = f" ({left[rank]})" if rank is not None and left[rank] else ""
        return WorldError(
            f"{who} ended before the others{why}; what was saved stays, and the rest is as if never begun; "
            "start the same command again, and it goes on where it stopped"
        )

    def has_lost(self) -> bool:
        """Whether another process has ended, or is about to."""
        return bool(self._left())

    def _left(self) -> dict[int, str]:
        """Those that have ended, by rank, with what they said."""
        left: dict[int, str] = {}
        for _ in range(10):  # a connection breaks a moment before its process has ended
            left = {rank: said for rank in self.pids if (said := self.marks.of(rank)) is not None}
            left |= {rank: "" for rank in self._gone() if rank not in left}
            if left:
                break
            time.sleep(EVERY / 2)
        return left

    def tell(self) -> None:
        """Say that others have ended, if it is this process that does: those before it have, and without a word."""
        gone = self._gone()
        if all(rank in gone and self.marks.of(rank) is None for rank in range(self.rank)):
            with contextlib.suppress(OSError):
                os.write(self._stderr, f"error: {self.lost()}\n".encode())

    def wait_for_leader(self) -> None:
        """Until process 0 has ended or is about to: what starts the processes may end all when the first one does."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and 0 not in self._gone() and self.marks.of(0) is None:
            time.sleep(EVERY / 2)

    def _gone(self) -> list[int]:
        return [rank for rank, pid in self.pids.items() if is_gone(pid)]

    def _look(self) -> None:
        while not self._ended.wait(EVERY):
            gone = self._gone()
            if not gone:
                continue
            if not self._ended.wait(GRACE if any(self.marks.of(rank) is None for rank in gone) else PATIENCE):
                self.tell()
                os._exit(1)
            return


def is_gone(pid: int) -> bool:
    """Whether a process has ended, be it that nobody has asked yet how."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("Z", "X")
    except (OSError, IndexError):
        return False  # where there is no such file, a connection tells
