"""Small stores, and helpers to add steps to them and to run code in processes of their own."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from lifelong_edit.stores import EditLog, Place, StepRecord, digest_bytes, encode_tensors

AddStep = Callable[..., StepRecord]
MakeStore = Callable[..., EditLog]


def _blob(number: int, size: int = 300) -> bytes:
    return encode_tensors({"dense/m": np.full((size, 4), number, np.float32)})


@pytest.fixture
def make_store(tmp_path: Path) -> Iterator[MakeStore]:
    """Makes a store at step 0 under the test's folder; all are closed at the end."""
    made: list[EditLog] = []

    def make(name: str = "store", **options: int) -> EditLog:
        fixed, weights = _blob(-1), _blob(0)
        record = StepRecord(
            step=0, kind="init", parent=-1, previous="", time="t", fixed=digest_bytes(fixed), weights_digest="w0",
            live_digest="l0",
        )  # fmt: skip
        blobs = {digest_bytes(b): b for b in (fixed, weights)}
        made.append(EditLog.create(tmp_path / name, record, blobs=blobs, weights=digest_bytes(weights), **options))
        return made[-1]

    yield make
    for log in made:
        log.close()


@pytest.fixture
def add_step() -> AddStep:
    """Appends a step with a fact, a shift, weights and a place, each a function of the step's number."""

    def add(log: EditLog, *, size: int = 300, snapshot: bool = False) -> StepRecord:
        head = log.head()
        number = head.step + 1
        shift, weights = _blob(number, size), _blob(1000 + number, size)
        fact = digest_bytes(b"fact", str(number).encode())
        record = StepRecord(
            step=number, kind="edit", parent=head.step, previous=head.chain, time="t", added=(fact,),
            places=(Place("f" * 32, number, fact),), shift=digest_bytes(shift),
            snapshot=digest_bytes(weights) if snapshot else None, weights_digest=f"w{number}", live_digest="l",
        )  # fmt: skip
        blobs = {digest_bytes(b): b for b in (shift, weights)}
        log.append(record, facts={fact: b'{"n":%d}' % number}, blobs=blobs, weights=digest_bytes(weights))
        return record

    return add


KILLER = """
import os, signal, sys
def act(*arguments):
{code}

events = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree", "ctypes.call_function")
count, last, sync = 0, 0, os.fsync
def hook(event, arguments):
    global count
    writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if last and (writes or event in events or event == "fsync"):
        count += 1
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)
def fsync(file):  # the one point at which the interpreter does not say itself what it is about to do
    hook("fsync", ())
    sync(file)
os.fsync = fsync
sys.addaudithook(hook)
act_now = lambda: act(*sys.argv[1:])
for line in sys.stdin:  # each line is a run in a process of its own, without importing anew
    if not (child := os.fork()):
        last = int(line)
        act_now()
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture
def killed_everywhere() -> Callable[..., Iterator[int]]:
    """Runs code over and over, killed before the first thing that it does to a file, before the second, and so on.

    Yields after each run at which of them it was killed; ends with the run that was not killed, without yielding.
    """

    def run(code: str, *arguments: object) -> Iterator[int]:
        program = KILLER.replace("{code}", textwrap.indent(textwrap.dedent(code), "    "))
        command = [sys.executable, "-c", program, *map(str, arguments)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None and process.stdout is not None
            try:
                for point in range(1, 1000):
                    print(point, file=process.stdin, flush=True)
                    status = int(process.stdout.readline())
                    if status == 0:
                        return
                    assert status == signal.SIGKILL, f"status {status} at point {point}"
                    yield point
            finally:
                process.stdin.close()

    return run


@pytest.fixture
def run_python() -> Callable[..., str]:
    """Runs code in a Python of its own and returns what it printed; fails where it dies."""

    def run(code: str, *arguments: object) -> str:
        command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run
