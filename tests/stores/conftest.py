"""Small stores, and helpers to add steps to them and to run code in processes of their own."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tarfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from lifelong_edit.facts import Fact
from lifelong_edit.settings import KEY_VARIABLE
from lifelong_edit.stores import (
    Dense,
    Edit,
    EditLog,
    FactKeys,
    Init,
    StepRecord,
    add_shifts,
    digest_bytes,
    encode_entries,
    encode_shifts,
    encode_tensors,
    tensors_digest,
    write_key_file,
    zeros,
)
from lifelong_edit.timeline import Timeline
from lifelong_edit.timeline.history import History, live_digest
from lifelong_edit.timeline.states import sketch, weights_at
from tests.faults import small
from tests.faults.running import run_python as run_code

AddStep = Callable[..., StepRecord]
MakeStore = Callable[..., EditLog]


BOTH = pytest.mark.parametrize("lived", ["plain", "encrypted"], indirect=True)
"""Of tests of a store that has lived: once in the clear, once encrypted."""


@pytest.fixture
def make_store(tmp_path: Path) -> Iterator[MakeStore]:
    """Makes a store at step 0 under the test's folder; all are closed at the end."""
    made: list[EditLog] = []

    def make(name: str = "store", **options: int) -> EditLog:
        made.append(small.create(tmp_path / name, **options))
        return made[-1]

    yield make
    for log in made:
        log.close()


@pytest.fixture
def add_step() -> AddStep:
    """Appends a step with a fact, a shift, weights and a place, each a function of the step's number."""
    return small.add


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
    return run_code


SHAPE = (48, 16)


class Lived:
    """A store without a model that has lived: edits with keys, states stored whole, a tag, a branch.

    The line of `main` is 0 … 8, of which 3 and 6 are stored whole; the tag `old` is at 2, `trial` begins at 4 and has
    one edit more, step 11. Each edit adds a fact, traces its keys and those of the one before; 5 supersedes fact 1.
    elsewhere: digests of weights as if they had been logged in another environment.
    """

    def __init__(self, path: Path, first: Init, *, elsewhere: bool = False, encrypt: bool = False) -> None:
        self.path, self._elsewhere, self._random = path, elsewhere, np.random.default_rng(0)
        provenance = msgspec.json.decode(msgspec.json.encode(first.provenance))
        provenance["config"]["model"]["modules"] = {"m": SHAPE}
        base = zeros({"m": SHAPE})
        fixed, begun = encode_tensors({"text": np.ones(9)}), encode_tensors(base)
        record = msgspec.structs.replace(
            first, provenance=provenance, fixed=digest_bytes(fixed), weights_digest=tensors_digest(base),
            parts=small.parts(tensors_digest(base)),
        )  # fmt: skip
        blobs = {digest_bytes(blob): blob for blob in (fixed, begun)}
        options: dict[str, Any] = {"map_size": 1 << 30, "encrypt": encrypt}
        EditLog.create(path, record, blobs=blobs, weights=digest_bytes(begun), **options).close()
        for number in range(1, 9):
            self.edit(number, superseded=(self.fact(1).digest,) if number == 5 else ())
        with Timeline.open(path) as timeline:
            timeline.tag("old", 2)
            timeline.branch("trial", 4)
        self.edit(11, parent=4)
        with Timeline.open(path) as timeline:
            timeline.switch("main")

    @staticmethod
    def fact(number: int) -> Fact:
        return Fact(subject=f"Town {number}", prompt=f"The mayor of Town {number} is", target=f"Person {number}")

    def edit(self, number: int, parent: int | None = None, superseded: tuple[str, ...] = ()) -> None:
        """Append an edit with a fact of that number."""
        with EditLog.open(self.path) as log:
            history, head = History(log.steps(), log.idle()), log.head()
            at, step = history.state_of(head.step if parent is None else parent), head.step + 1
            array = self._random.standard_normal(SHAPE).astype(np.float32)
            weights = add_shifts(weights_at(log, history, at, {"m": SHAPE}), {"m": Dense(array)})
            facts = sorted(self.fact(n).digest for n in (number - 1, number) if n > 0)
            traced = FactKeys({"m": np.full((1, SHAPE[0]), step, np.int16)}, np.full(3, step, np.float32))
            keys = encode_entries(dict.fromkeys(facts, traced))
            whole, shift = encode_tensors(weights), encode_shifts({"m": Dense(array)})
            editor = encode_tensors({"mean": np.full(4, step, np.float64)})
            live = [digest for digest in history.live(at) if digest not in superseded]
            logged = {"environment": {"python": "1.0"}, "sketch": sketch(weights)} if self._elsewhere else {}
            digest = "0" * 32 if self._elsewhere else tensors_digest(weights)
            record = Edit(
                step=step, parent=at, previous=head.chain, time="2031-01-01T00:00:00", provenance=logged,
                added=(self.fact(number).digest,), superseded=superseded, weights_digest=digest,
                parts=small.parts(
                    digest, shift=digest_bytes(shift), keys=digest_bytes(keys), moments=digest_bytes(editor),
                    snapshot=digest_bytes(whole) if step in (3, 6) else None,
                ),
                live_digest=live_digest([*live, self.fact(number).digest]),
            )  # fmt: skip
            blobs = {digest_bytes(data): data for data in (keys, whole, shift, editor)}
            encoded = msgspec.json.encode(self.fact(number))
            log.append(record, facts={self.fact(number).digest: encoded}, blobs=blobs, weights=digest_bytes(whole))


@pytest.fixture(scope="session")
def first_step(tmp_path_factory: pytest.TempPathFactory) -> Init:
    """Step 0 of a store that an earlier release made: a config that needs no model."""
    folder = tmp_path_factory.mktemp("first")
    with tarfile.open(Path(__file__).parent / "data" / "schema-1.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    with EditLog.open(folder / "store", read_only=True) as log:
        record = log.step(0)
        assert isinstance(record, Init)
        return record


@pytest.fixture(scope="session")
def _lived(tmp_path_factory: pytest.TempPathFactory, first_step: Init) -> Path:
    return Lived(tmp_path_factory.mktemp("lived") / "store", first_step).path


@pytest.fixture(scope="session")
def _key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("key") / "key"
    write_key_file(file)
    return file


@pytest.fixture(scope="session")
def _lived_encrypted(tmp_path_factory: pytest.TempPathFactory, first_step: Init, _key: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, str(_key))
        return Lived(tmp_path_factory.mktemp("lived") / "store", first_step, encrypt=True).path


@pytest.fixture
def key_file(_key: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A key at hand for encrypted stores."""
    monkeypatch.setenv(KEY_VARIABLE, str(_key))
    return _key


@pytest.fixture
def lived(request: pytest.FixtureRequest, _lived: Path, tmp_path: Path) -> Path:
    """A store that has lived, see `Lived`; encrypted, with its key at hand, where the parameter says so."""
    if getattr(request, "param", "plain") == "encrypted":
        request.getfixturevalue("key_file")
        return Path(shutil.copytree(request.getfixturevalue("_lived_encrypted"), tmp_path / "store"))
    return Path(shutil.copytree(_lived, tmp_path / "store"))


@pytest.fixture
def lived_elsewhere(first_step: Init, tmp_path: Path) -> Path:
    """The same, with digests of weights that were logged in another environment."""
    return Lived(tmp_path / "elsewhere", first_step, elsewhere=True).path
