"""`watch`, beside real runs: in lines, and in a terminal."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from click.testing import Result

from lifelong_edit.cli.watching import Seen
from tests.warm import Running

Run = Callable[..., Result]
Program = Callable[..., Running]


def test_a_store_that_rests_is_told_and_left(run: Run, store: Path) -> None:
    before = (store / "data.mdb").read_bytes()
    said = run("watch", "--idle", 0, "--store", store)
    assert said.exit_code == 0, said.output
    head, *rows = [line.split() for line in said.stdout.splitlines()]
    assert head == ["step", "kind", "facts", "taken", "conflicts", "kept", "locality", "perplexity", "seconds", "time"]
    assert [row[:3] for row in rows] == [["0", "init", "-"], *([str(n), "edit", "2"] for n in (1, 2, 3))]
    assert all(row[5] != "-" for row in rows[1:])
    assert (store / "data.mdb").read_bytes() == before


def test_it_begins_before_there_is_a_store_and_sees_each_step_with_what_was_asked(
    program: Program, news: Path, making: list[str], tmp_path: Path
) -> None:
    store = tmp_path / "new"
    watching = program("watch", "--every", 0.05, "--store", store)
    assert watching.stdout is not None
    assert watching.stdout.readline().split()[:2] == [b"step", b"kind"]
    options = ["--batch-size", 1, "--store", store, "--reconsolidate", "every:3", *making]
    streaming = program("stream", news, *options)
    _, said = streaming.communicate(timeout=120)
    assert streaming.returncode == 0, said
    rows = [watching.stdout.readline().split() for _ in range(8)]
    watching.send_signal(signal.SIGINT)
    _, said = watching.communicate(timeout=30)
    assert (watching.returncode, b"the run goes on" in said) == (0, True)
    assert [int(row[0]) for row in rows] == list(range(8))
    assert [row[1] for row in rows[:4]] == [b"init", b"edit", b"edit", b"edit"]
    assert rows[4][1] in (b"reconsolidate", b"refused")
    assert all(row[5] != b"-" for row in rows if row[1] in (b"edit", b"reconsolidate"))


def test_it_goes_on_with_the_folder_that_takes_the_place_of_the_store(program: Program, run: Run, store: Path) -> None:
    """Compaction puts another one there."""
    watching = program("watch", "--every", 0.05, "--store", store)
    assert watching.stdout is not None
    assert [watching.stdout.readline().split()[0] for _ in range(5)][-1] == b"3"
    assert run("rollback", 1, "--store", store).exit_code == 0
    assert watching.stdout.readline().split()[:2] == [b"4", b"rollback"]
    assert run("compact", "--store", store).exit_code == 0
    assert watching.stdout.readline().split()[:2] == [b"5", b"compact"]
    assert run("tag", "mark", "--store", store).exit_code == 0
    assert watching.stdout.readline().split()[:2] == [b"6", b"tag"]
    watching.send_signal(signal.SIGINT)
    watching.communicate(timeout=30)
    assert watching.returncode == 0


def test_in_a_terminal_it_is_a_table_drawn_anew(store: Path) -> None:
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "lifelong_edit", "watch", "--every", "0.1", "--idle", "0.3", "--store", str(store)]
    env = {**os.environ, "COLUMNS": "130", "LINES": "30", "TERM": "xterm"}
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=subprocess.DEVNULL, env=env) as process:
        os.close(slave)
        said, deadline = b"", time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                said += os.read(master, 65536)
            except OSError:  # the other side is closed
                break
        os.close(master)
        assert process.wait(timeout=30) == 0
    text = said.decode()
    assert "6 facts taught" in text and "idle" in text and "perplexity" in text
    assert text.count("6 facts taught") > 1 and "\x1b[1A" in text  # the cursor goes up, and it is drawn again


def test_a_row_waits_for_what_is_asked_after_it_as_long_as_somebody_writes() -> None:
    row = {"kind": "edit", "kept": None}
    assert Seen(rows=[row], writer="1").complete == 0
    assert Seen(rows=[row], writer=None).complete == 1
    assert Seen(rows=[row, {"kind": "tag", "kept": None}], writer="1").complete == 2
    assert Seen(rows=[{"kind": "edit", "kept": 0.5}], writer="1").complete == 1


def test_a_damaged_store_ends_it(run: Run, store: Path) -> None:
    with (store / "data.mdb").open("r+b") as file:
        file.truncate(5000)
    said = run("watch", "--idle", 0, "--store", store)
    assert said.exit_code == 4 and "truncated" in said.stderr
