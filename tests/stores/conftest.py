"""Small stores, and helpers to add steps to them and to run code in processes of their own."""

from __future__ import annotations

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


@pytest.fixture
def run_python() -> Callable[..., str]:
    """Runs code in a Python of its own and returns what it printed; fails where it dies."""

    def run(code: str, *arguments: object) -> str:
        command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run
