"""A process that names states is killed anywhere: what it was told is done is there, and nothing is half done.

It works on the store of schema 1 beside the store tests, so that the step which takes it along is hit as well.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from lifelong_edit.stores import SCHEMA_VERSION
from lifelong_edit.timeline import Timeline

ARCHIVE = Path(__file__).parents[1] / "stores" / "data" / "schema-1.tar.gz"
NAMER = """
import os, sys
from lifelong_edit.timeline import Timeline
for folder in sys.stdin:  # each line is a run in a process of its own
    child = os.fork()
    if child == 0:
        with Timeline.open(folder.strip()) as timeline:
            print("ready", os.getpid(), flush=True)
            for number in range(40):
                for step in (
                    lambda: timeline.tag(f"t{number}", number % 3),
                    lambda: timeline.branch(f"b{number}", (number + 1) % 3),
                    lambda: timeline.switch("main"),
                    lambda: timeline.delete_branch(f"b{number}"),
                ):
                    os.write(1, f"done {step().step}\\n".encode())  # whole or not at all, also when it is killed
        os._exit(0)
    os.waitpid(child, 0)
    print("ended", 0, flush=True)
"""
KINDS = ("tag", "branch", "switch", "branch")


def test_names_survive_a_kill(tmp_path: Path) -> None:
    random.seed(0)
    namer = subprocess.Popen([sys.executable, "-c", NAMER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert namer.stdin is not None and namer.stdout is not None
    kept = set[int]()
    try:
        for run in range(25):
            folder = tmp_path / str(run)
            with tarfile.open(ARCHIVE) as archive:
                archive.extractall(folder, filter="data")
            print(folder / "store", file=namer.stdin, flush=True)
            word, pid = namer.stdout.readline().split()
            assert word == "ready"
            told = 3
            for _ in range(run // 2):  # so that the kills are spread however slow the machine is
                told = int(namer.stdout.readline().split()[1])
            time.sleep(random.random() * 0.01)
            with contextlib.suppress(ProcessLookupError):  # it was faster
                os.kill(int(pid), signal.SIGKILL)
            while (line := namer.stdout.readline().split())[0] == "done":
                told = int(line[1])
            kept.add(told)
            check(folder / "store", told)
    finally:
        namer.stdin.close()
        namer.stdout.close()
        namer.wait()
    assert len(kept) > 5, "the kills came all at the same time"


def check(store: Path, told: int) -> None:
    with Timeline.open(store) as timeline:
        assert told <= timeline.head <= told + 1
        kinds = [record.kind for record in timeline.log()[4:]]
        assert kinds == [KINDS[i % 4] for i in range(len(kinds))]
        assert [tag.name for tag in timeline.tags()] == [f"t{n}" for n in range((len(kinds) + 3) // 4)]
        branches, phase = {b.name: b.current for b in timeline.branches()}, len(kinds) % 4
        last = f"b{len(kinds) // 4}"
        assert branches == ({"main": True} if phase < 2 else {"main": phase == 3, last: phase == 2})
        timeline.weights("head")  # raises where they are not those that were logged
        timeline.tag("after")
    assert json.loads((store / "store.json").read_bytes())["schema_version"] == SCHEMA_VERSION


def test_the_check_can_fail(tmp_path: Path) -> None:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    with Timeline.open(tmp_path / "store") as timeline:
        timeline.tag("t0")
    with pytest.raises(AssertionError):
        check(tmp_path / "store", 6)  # a step that was acknowledged is missing
