"""A run that is killed anywhere and started again leaves the digests of one that was left alone."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from lifelong_edit.facts import Fact, Record
from lifelong_edit.timeline import Timeline

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
"""As in this process: results are promised bit for bit in one environment, and the number of threads belongs to it."""

LAUNCHER = """
import os, sys, msgspec
from pathlib import Path
import lifelong_edit.timeline.solving, lifelong_edit.stores.index, transformers.models.gpt2.modeling_gpt2
from lifelong_edit.facts import Record
from lifelong_edit.timeline import Timeline

batches = msgspec.json.decode(Path(sys.argv[2]).read_bytes(), type=list[list[Record]])
for _ in sys.stdin:  # each line is a run in a process of its own, without importing torch anew
    child = os.fork()
    if child == 0:
        with Timeline.open(sys.argv[1], timeout=30) as timeline:
            timeline.bench()
            print("ready", os.getpid(), flush=True)
            for batch in batches:
                timeline.apply(batch, gate=lambda *_: {})
                print("batch", os.getpid(), flush=True)
        os._exit(0)
    print("ended", os.waitpid(child, 0)[1], flush=True)
"""


class Launcher:
    """Runs of the stream, to be killed or left alone."""

    def __init__(self, *arguments: Path) -> None:
        command = [sys.executable, "-c", LAUNCHER, *map(str, arguments)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ONE_THREAD
        )

    def run(self, kill_after: tuple[int, float] | None = None) -> int:
        """One run; the status that it ended with. kill_after: so many batches, and seconds more."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print("run", file=self._process.stdin, flush=True)
        pid = self._expect("ready")
        if kill_after is not None:
            for _ in range(kill_after[0]):
                self._expect("batch")
            time.sleep(kill_after[1])
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return self._expect("ended")

    def _expect(self, expected: str) -> int:
        """The number on the next line that begins with a word, past lines about batches."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            word, number = line.split()
            if word == expected:
                return int(number)
            assert word == "batch", line
        raise AssertionError("the launcher ended")

    def close(self) -> None:
        """End the launcher."""
        self._process.communicate()


def test_a_killed_run_goes_on_to_the_same_digests(
    start_store: Callable[..., Timeline],
    tmp_path: Path,
    batch: Callable[..., list[Fact]],
    placed: Callable[..., list[Record]],
    fact: Callable[..., Fact],
    lenient: Callable[..., Any],
) -> None:
    batches = [placed(batch(i), "a", 3 * i) for i in range(6)]
    batches[3] += placed([fact(0, "Sydney"), fact(1)], "b")  # one supersedes, one is live already
    with start_store(tmp_path / "calm") as calm:
        for records in batches:
            calm.apply(records, gate=lenient)
        expected = [(r.weights_digest, r.live_digest, r.places) for r in calm.log()]
    start_store(tmp_path / "killed").close()
    (tmp_path / "batches.json").write_bytes(msgspec.json.encode(batches))
    launcher, moment = Launcher(tmp_path / "killed", tmp_path / "batches.json"), random.Random(1)
    heads = []
    for consumed in (0, 1, 3, 5):
        launcher.run(kill_after=(consumed, moment.uniform(0, 0.15)))
        with Timeline.open(tmp_path / "killed", read_only=True) as timeline:
            heads.append(timeline.head)
    assert launcher.run() == 0
    launcher.close()
    assert heads == sorted(heads)
    assert heads[0] < 6, "the first run was over before it was killed"
    with Timeline.open(tmp_path / "killed", read_only=True) as timeline:
        assert [(r.weights_digest, r.live_digest, r.places) for r in timeline.log()] == expected
