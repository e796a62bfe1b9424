"""`stream --follow`, SIGTERM and two writers, with real processes."""

from __future__ import annotations

import json
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import Result

from tests.warm import Running

Run = Callable[..., Result]
Program = Callable[..., Running]


def rows(process: Running, count: int) -> list[list[str]]:
    """The next rows of the table on stdout."""
    assert process.stdout is not None
    return [process.stdout.readline().decode().split() for _ in range(count)]


def append(path: Path, *numbers: int, end: str = "\n") -> None:
    with path.open("a") as stream:
        stream.write("\n".join(line(number) for number in numbers) + end)


def line(number: int) -> str:
    name = f"Vienna {number}"
    return json.dumps({"subject": name, "prompt": f"The capital of {name} is", "target": "Paris"})


def steps(run: Run, store: Path) -> list[Any]:
    log = json.loads(run("log", "--store", store, "--json").stdout)
    return [(step["facts"], step["weights_digest"]) for step in log]


def test_follow_edits_full_batches_and_ends_by_a_signal(
    program: Program, run: Run, empty_store: Path, tmp_path: Path
) -> None:
    calm, path = Path(shutil.copytree(empty_store, tmp_path / "calm")), tmp_path / "a.jsonl"
    append(path, 0, 1, 2)
    process = program("stream", "--follow", path, "--store", empty_store, "--batch-size", 2, "--idle", 600)
    assert [row[0] for row in rows(process, 2)] == ["step", "1"]
    append(path, 3, 4, end="")  # 3 makes a batch full; the line of 4 is not whole yet
    assert [row[:3] for row in rows(process, 1)] == [["2", "2", "2"]]
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert b"stopping after the batch at hand" in err
    assert b"4 records: 4 facts in 2 steps" in err
    assert run("stream", path, "--store", empty_store, "--batch-size", 2).exit_code == 0
    assert run("stream", path, "--store", calm, "--batch-size", 2).exit_code == 0
    assert steps(run, empty_store) == steps(run, calm)


def test_follow_edits_a_batch_that_is_not_full_when_idle_and_survives_kills(
    program: Program, run: Run, empty_store: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    append(path, 0)
    command = ("stream", "--follow", path, "--store", empty_store, "--batch-size", 2)
    process = program(*command, "--idle", 0.1)
    assert [row[:3] for row in rows(process, 2)[1:]] == [["1", "1", "1"]]
    process.kill()
    process.communicate()
    append(path, 1, 2, 3, 4)
    process = program(*command, "--idle", 600)
    # The batch that was begun goes on with record 1: boundaries do not depend on what was killed.
    assert [row[:3] for row in rows(process, 3)[1:]] == [["2", "2", "1"], ["3", "2", "2"]]
    process.send_signal(signal.SIGINT)  # the last record is edited in the end, if it was read by now
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert run("stream", path, "--store", empty_store, "--batch-size", 2).exit_code == 0
    assert [facts for facts, _ in steps(run, empty_store)] == [0, 1, 1, 2, 1]


def test_follow_makes_a_store_and_says_what_it_refuses(
    program: Program, run: Run, tmp_path: Path, making: list[str]
) -> None:
    path = tmp_path / "a.jsonl"
    append(path, 0)
    for more, code in ((["--dry-run"], 2), ([], 0)):
        process = program("stream", "--follow", path, "--store", tmp_path / "s", "--idle", 0, *making, *more)
        if code == 0:
            assert rows(process, 2)[1][0] == "1"
            process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        assert process.returncode == code, err
    result = run("stream", "--follow", "-", "--store", tmp_path / "none", input="")
    assert (result.exit_code, (tmp_path / "none").exists()) == (2, False)
    path.write_text("{broken\n")
    result = run("stream", "--follow", path, "--store", tmp_path / "s")
    assert result.exit_code == 3
    assert f"{path}:1: " in result.stderr


def test_143_terminated(program: Program, run: Run, empty_store: Path, tmp_path: Path) -> None:
    """As Ctrl-C: every step that was shown is there, and the same command goes on."""
    path = tmp_path / "a.jsonl"
    append(path, *range(40))
    process = program("stream", path, "--store", empty_store, "--batch-size", 1)
    seen = rows(process, 3)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert b"terminated" in err
    assert b"Traceback" not in err
    head = json.loads(run("status", "--store", empty_store, "--json").stdout)["head"]
    assert int(seen[-1][0]) <= head < 40
    assert run("stream", path, "--store", empty_store, "--batch-size", 1).exit_code == 0
    assert json.loads(run("status", "--store", empty_store, "--json").stdout)["live_facts"] == 40


def test_a_second_run_is_refused_or_waits_and_applies_nothing_twice(
    program: Program, run: Run, empty_store: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    append(path, 0, 1)
    first = program("stream", "--follow", path, "--store", empty_store, "--batch-size", 1, "--idle", 600)
    rows(first, 3)
    command = ("stream", path, "--store", empty_store, "--batch-size", 1)
    refused = program(*command, "--wait", 0)
    out, err = refused.communicate(timeout=60)
    assert (refused.returncode, out) == (4, b"")
    assert f"being written by process {first.pid}".encode() in err
    append(path, 2)
    waiting = program(*command, "--wait", 60, "--json")
    rows(first, 1)
    threading.Timer(2.0, first.send_signal, [signal.SIGTERM]).start()
    out, err = waiting.communicate(timeout=120)
    first.communicate(timeout=60)
    assert (first.returncode, waiting.returncode) == (0, 0), err
    assert json.loads(out)["summary"]["skipped"] == {"consumed": 3}
    assert [facts for facts, _ in steps(run, empty_store)] == [0, 1, 1, 1]


def test_two_runs_that_both_make_the_store(program: Program, run: Run, tmp_path: Path, making: list[str]) -> None:
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for number, path in enumerate(paths):
        append(path, number, 2)
    runs = [program("stream", path, "--store", tmp_path / "s", "--wait", 120, *making) for path in paths]
    for process in runs:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert sorted(facts for facts, _ in steps(run, tmp_path / "s")) == [0, 1, 2]
