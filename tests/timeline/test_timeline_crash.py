"""A run that is killed anywhere and started again leaves the digests of one that was left alone."""

from __future__ import annotations

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

RUN = """
import sys, msgspec
from pathlib import Path
from lifelong_edit.facts import Record
from lifelong_edit.timeline import Timeline

batches = msgspec.json.decode(Path(sys.argv[2]).read_bytes(), type=list[list[Record]])
with Timeline.open(sys.argv[1], timeout=30) as timeline:
    timeline.bench()
    print("ready", flush=True)
    for batch in batches:
        print(timeline.apply(batch, gate=lambda *_: {}).step, flush=True)
"""


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
    command = [sys.executable, "-c", RUN, str(tmp_path / "killed"), str(tmp_path / "batches.json")]
    moment = random.Random(1)
    heads = []
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ONE_THREAD)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(moment.uniform(0.05, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        with Timeline.open(tmp_path / "killed", read_only=True) as timeline:
            heads.append(timeline.head)
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env=ONE_THREAD)
    assert done.stdout.split()[-1] == "6"
    assert heads[0] < 6, "the first run was over before it was killed"
    with Timeline.open(tmp_path / "killed", read_only=True) as timeline:
        assert [(r.weights_digest, r.live_digest, r.places) for r in timeline.log()] == expected
