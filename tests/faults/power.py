"""Power cuts: an ext4 file system in a file is shut down under a writer, and mounted again.

FS_IOC_SHUTDOWN without flushing the log leaves on the disk what had been forced there and nothing more, as a cut does.
Needs root and a loop device; run it in a mount namespace of its own (`unshare --mount`), which leaves nothing mounted.
"""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from lifelong_edit.atomic import remove_leftovers, replace_dir_atomic
from lifelong_edit.stores import EditLog
from tests.faults import small
from tests.faults.kills import NOTHING, STEPS_PER_STORE, Count, judge

_SHUTDOWN, _WITHOUT_LOG = 0x8004587D, 2
_IMAGE_BYTES = 96 << 20


def mount(folder: Path) -> Path:
    """An empty ext4 file system."""
    image, place = folder / "disk", folder / "mounted"
    with image.open("wb") as file:
        file.truncate(_IMAGE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    place.mkdir()
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    return place


def cut(place: Path, write: Callable[[int], None], seconds: float) -> list[str]:
    """The lines that a fork of this process wrote to its pipe before the power went; mounted again afterwards."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            write(writing)
        finally:
            os._exit(1)
    os.close(writing)
    time.sleep(seconds)
    folder = os.open(place, os.O_RDONLY)
    fcntl.ioctl(folder, _SHUTDOWN, struct.pack("I", _WITHOUT_LOG))
    os.close(folder)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(reading, encoding="ascii") as pipe:  # the acknowledgements of a second fit into a pipe
        lines = pipe.read().splitlines()
    subprocess.run(["umount", place], check=True)
    subprocess.run(["mount", "-o", "loop", place.parent / "disk", place], check=True)
    return lines


def power_cuts(folder: Path, cycles: int, *, seed: int = 0) -> Count:
    """Steps are added while the power goes."""
    place, moment, found, before = mount(folder), random.Random(seed), NOTHING, STEPS_PER_STORE
    store = place / "store"

    def write(pipe: int) -> None:
        with EditLog.open(store) as log:
            while True:
                small.add(log)
                head = log.head()
                os.write(pipe, f"{head.step} {head.chain}\n".encode())

    for _ in range(cycles):
        if before >= STEPS_PER_STORE:
            shutil.rmtree(store, ignore_errors=True)
            small.create(store).close()
            before = 0
        lines = [line.split() for line in cut(place, write, moment.uniform(0.05, 0.5))]
        cycle = judge(store, [(int(step), chain) for step, chain in lines], before)
        found += cycle
        if cycle.lost or cycle.torn:
            before = STEPS_PER_STORE
        else:
            with EditLog.open(store, read_only=True) as log:
                before = log.head().step
    subprocess.run(["umount", place], check=True)
    return found


def export_cuts(folder: Path, cycles: int, *, seed: int = 0) -> Count:
    """A folder is replaced again and again while the power goes: after it, it is whole, and the last that was told."""
    place, moment, found, version = mount(folder), random.Random(seed), NOTHING, 0
    target = place / "out"

    def write(pipe: int) -> None:
        number = version
        while True:
            number += 1
            with replace_dir_atomic(target) as out:
                for name in "abc":
                    (out / name).write_bytes(number.to_bytes(8, "big") * 4096)
            os.write(pipe, b"%d\n" % number)

    for _ in range(cycles):
        told = [int(line) for line in cut(place, write, moment.uniform(0.05, 0.5))]
        last = told[-1] if told else version
        remove_leftovers(target)
        kept = [(target / name).read_bytes() for name in "abc"] if target.exists() else [bytes(8) * 4096]
        version = int.from_bytes(kept[0][:8], "big")
        torn = kept != [version.to_bytes(8, "big") * 4096] * len(kept) or version > last + 1
        found += Count(1, len(told), max(0, last - version), int(torn))
        version = max(version, last)
    subprocess.run(["umount", place], check=True)
    return found
