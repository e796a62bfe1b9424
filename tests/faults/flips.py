"""One flipped bit, anywhere in a database: everything is the same, or what is wrong is said. Never anything else."""

from __future__ import annotations

import collections
import os
import random
import shutil
import signal
import struct
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lifelong_edit.errors import StoreError
from lifelong_edit.stores import EditLog, Place, digest_bytes
from tests.faults import small

PAGE = 4096
REGIONS = ("meta", "branch", "leaf", "tensor", "free")
Counts = dict[str, collections.Counter[str]]


def create(path: Path, steps: int = 8) -> None:
    """A store with branch pages in its tables, snapshots, steps that share blobs, places without a step."""
    with small.create(path) as log:
        for number in range(1, steps + 1):
            small.add(log, size=100, snapshot=number % 3 == 0)
            for more in range(4):
                log.consume(number, [Place("a" * 32, 10 * number + more, digest_bytes(b"idle", bytes([more])))])


def read(path: Path) -> list[Any]:
    """All that commands which only read can come to see."""
    with EditLog.open(path, read_only=True) as log:
        return small.content(log)


def write(path: Path) -> list[Any]:
    """All that commands which write can come to see, before they add a step and after it."""
    with EditLog.open(path) as log:
        found = [small.content(log), log.idle()]
        small.add(log, size=100)
        small.add(log, size=100, snapshot=True)
        return [*found, small.content(log), log.idle()]


def region(data: bytes, page: int) -> str:
    """What a page of a database holds; of an overflow page all but the first have no header."""
    if page < 2:
        return "meta"
    number, _, flags = struct.unpack_from("<QHH", data, page * PAGE)
    if number != page:
        return "tensor"
    return {1: "branch", 2: "leaf", 4: "tensor"}.get(flags & 7, "free")


def everywhere(data: bytes, every: int = 1) -> Iterator[tuple[int, int]]:
    """(position, bit): all bits of meta pages that mean something, and of every `every`th byte elsewhere one."""
    for page in range(2):
        yield from ((page * PAGE + at, bit) for at in range(160) for bit in range(8))
    yield from ((at, at // every % 8) for at in range(2 * PAGE, len(data), every))


def at_random(data: bytes, count: int, seed: int = 0) -> Iterator[tuple[int, int]]:
    """(position, bit), as many in each region, most of them where the headers and pointers of pages stand."""
    choice = random.Random(seed)
    pages = collections.defaultdict(list)
    for page in range(len(data) // PAGE):
        pages[region(data, page)].append(page)
    for _ in range(count // len(pages)):
        for name, found in pages.items():
            at = choice.randrange(160 if name == "meta" or choice.random() < 0.5 else PAGE)
            yield choice.choice(found) * PAGE + at, choice.randrange(8)


def sweep(folder: Path, flips: Iterable[tuple[int, int]], *, writing: bool) -> tuple[Counts, list[str]]:
    """Flip each bit of the store in `folder`, use it in a fork, flip it back. What came of it by region; what is bad.

    `same`: nothing changed. `named`: a StoreError said what is damaged. Bad is all else: other content, another
    exception, a signal, no end.
    """
    store, scratch = folder / "store", folder / "scratch"
    original = (store / "data.mdb").read_bytes()
    use = write if writing else read
    expected = _expected(store, scratch, writing)
    counts: Counts = collections.defaultdict(collections.Counter)
    bad = []
    for position, bit in flips:
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(store, scratch)
        with (scratch / "data.mdb").open("r+b") as file:
            file.seek(position)
            file.write(bytes([original[position] ^ 1 << bit]))
        result = _outcome(scratch, use, expected)
        name = region(original, position // PAGE)
        counts[name][result] += 1
        if result not in ("same", "named"):
            where = f"page {position // PAGE}, byte {position % PAGE}, bit {bit}"
            bad.append(f"{name}, {where}, {'writing' if writing else 'reading'}: {result}")
    return counts, bad


def _expected(store: Path, scratch: Path, writing: bool) -> list[Any]:
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(store, scratch)
    return write(scratch) if writing else read(scratch)


def _outcome(store: Path, use: Any, expected: list[Any]) -> str:
    child = os.fork()
    if child == 0:
        code = 3
        try:
            signal.alarm(20)
            code = 0 if use(store) == expected else 2
        except StoreError:
            code = 1
        except BaseException as error:
            print(f"{type(error).__name__}: {error}"[:300], file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return ("same", "named", "other content", "another exception")[os.WEXITSTATUS(status)]


def table(counts: Counts) -> str:
    """The counts as lines, one per region."""
    return "\n".join(
        f"{name:8}" + "".join(f"  {result} {number}" for result, number in sorted(found.items()))
        for name, found in sorted(counts.items())
    )
