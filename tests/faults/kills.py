"""SIGKILL at every call, or at random, while steps are added; what was acknowledged is held against what is there.

Each life is a fork of a process that has imported everything, so that thousands of them take minutes.
"""

from __future__ import annotations

import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from lifelong_edit.errors import LifelongEditError
from lifelong_edit.stores import EditLog
from tests.faults import small

STEPS_PER_STORE = 200
"""After so many steps a loop begins anew: a longer log takes longer to check and shows nothing else."""


class Count(NamedTuple):
    """What a loop did and found. torn: cycles after which something was unreadable, or more than one step too many."""

    cycles: int
    acknowledged: int
    lost: int
    torn: int

    def __add__(self, other: Any) -> Count:
        return Count(*(one + two for one, two in zip(self, other, strict=True)))

    def __str__(self) -> str:
        return "  ".join(f"{name} {number}" for name, number in self._asdict().items())


NOTHING = Count(0, 0, 0, 0)


def killed_at(call: int, run: Callable[[], object]) -> bool:
    """Run in a fork that is killed at so manyth call or return of any function; False where it ended before."""
    child = os.fork()
    if child == 0:
        left = call

        def count(*_: object) -> None:
            nonlocal left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.setprofile(count)
            run()
        finally:
            sys.setprofile(None)
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def at_every_call(template: Path, write: Callable[[EditLog], object], *, stride: int = 1) -> Count:
    """`write` into copies of a store, killed at every call (of `stride`) from there to its acknowledgement."""
    found, call, going = NOTHING, 1, True
    with EditLog.open(template, read_only=True) as log:
        before = log.head().step
    while going:
        with tempfile.TemporaryDirectory(dir=template.parent) as folder:
            store, note = Path(folder) / "store", Path(folder) / "acknowledged"
            shutil.copytree(template, store)

            def run(store: Path = store, note: Path = note) -> None:
                kept, profile = sys.getprofile(), sys.setprofile
                profile(None)
                log = EditLog.open(store)
                profile(kept)
                write(log)
                note.touch()

            going = killed_at(call, run)
            found += judge(store, [(before + 1, None)] if note.exists() else [], before)
        call += stride
    return found


def judge(store: Path, acknowledged: list[tuple[int, str | None]], before: int) -> Count:
    """One cycle. acknowledged: (step, chain digest) since step `before`, which was known to be whole."""
    try:
        with EditLog.open(store) as log:  # for writing, as the next run would
            head = log.head()
            last = acknowledged[-1][0] if acknowledged else before
            lost = sum(step > head.step for step, _ in acknowledged)
            lost += any(chain and step == head.step and chain != head.chain for step, chain in acknowledged)
            torn = head.step > last + 1 or not small.is_whole(log, max(1, before))
    except LifelongEditError as error:
        print(f"{store}: {error}", file=sys.stderr)
        return Count(1, len(acknowledged), len(acknowledged), 1)
    return Count(1, len(acknowledged), lost, int(torn))


def random_kills(
    folder: Path, cycles: int, *, seed: int = 0, longest: float = 0.02, size: int = 300, encrypt: bool = False
) -> Count:
    """Lives of a writer, each killed up to `longest` seconds after it began to write."""
    moment, found, store, before = random.Random(seed), NOTHING, folder / "store", STEPS_PER_STORE
    for _ in range(cycles):
        if before >= STEPS_PER_STORE:
            shutil.rmtree(store, ignore_errors=True)
            small.create(store, encrypt=encrypt).close()
            before = 0
        acknowledged = one_life(store, moment.uniform(0, longest), size)
        cycle = judge(store, acknowledged, before)
        found += cycle
        if cycle.lost or cycle.torn:
            before = STEPS_PER_STORE
        else:
            with EditLog.open(store, read_only=True) as log:
                before = log.head().step
    return found


def one_life(store: Path, seconds: float, size: int) -> list[tuple[int, str | None]]:
    """A writer that adds steps and says so in a pipe, which outlives it, until it is killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with EditLog.open(store) as log:
                os.write(writing, b"ready\n")
                while True:
                    small.add(log, size=size)
                    head = log.head()
                    os.write(writing, f"{head.step} {head.chain}\n".encode())
        finally:
            os._exit(1)
    os.close(writing)
    select.select([reading], [], [], 30)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(reading, encoding="ascii") as pipe:
        lines = pipe.read().split("\n")
    assert lines[0] == "ready", "the writer could not open the store"
    return [(int(step), chain) for step, chain in (line.split() for line in lines[1:] if line)]
