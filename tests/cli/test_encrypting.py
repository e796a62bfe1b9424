"""Encrypted stores from the command line: made with a key, used with it alone, nothing of the facts in the files."""

from __future__ import annotations

import json
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from lifelong_edit.settings import KEY_VARIABLE
from tests.cli.conftest import fact_line
from tests.warm import Running

Run = Callable[..., Result]
Program = Callable[..., Running]


@pytest.fixture
def key(tmp_path: Path, run: Run) -> Path:
    assert run("keygen", tmp_path / "key").exit_code == 0
    return tmp_path / "key"


@pytest.fixture
def store(tmp_path: Path, run: Run, making: list[str], news: Path, key: Path) -> Path:
    """An encrypted store, made by the stream that fills it."""
    path = tmp_path / "encrypted"
    result = run("stream", news, "--store", path, "--encrypt", "--key-file", key, "--batch-size", 2, *making)
    assert result.exit_code == 0, result.output
    return path


def test_nothing_of_the_facts_is_in_its_files(store: Path, tmp_path: Path, run: Run, key: Path) -> None:
    assert run("backup", tmp_path / "copy", "--store", store, "--key-file", key).exit_code == 0
    files = [file for folder in (store, tmp_path / "copy") for file in folder.rglob("*") if file.is_file()]
    assert store / "index" / "keys.faiss" in files
    for file in files:
        data = file.read_bytes()
        assert b"Vienna 1" not in data and b"IxFI" not in data and b"capital" not in data


def test_every_command_finds_the_key(store: Path, tmp_path: Path, run: Run, key: Path, news: Path) -> None:
    for command in (
        ["status"],
        ["log"],
        ["facts"],
        ["ask", "The capital of Vienna 1 is"],
        ["fsck", "--weights"],
        ["rollback", "1"],
        ["stream", news, "--again", "--encrypt"],
        ["compact"],
        ["backup", tmp_path / "copy"],
        ["export", "--out", tmp_path / "model"],
        ["restore", tmp_path / "copy"],
    ):
        without = run(*command, "--store", store)
        assert (without.exit_code, "is encrypted, and no key was given" in without.output) == (4, True), without.output
        result = run(*command, "--store", store, "--key-file", key)
        assert result.exit_code == 0, result.output
    assert KEY_VARIABLE not in os.environ, "the option of one command is no business of the next"
    found = json.loads(run("status", "--store", store, "--json", env={KEY_VARIABLE: str(key)}).stdout)
    assert found["encrypted"] is True


def test_a_new_key(store: Path, tmp_path: Path, run: Run, key: Path) -> None:
    new = tmp_path / "new"
    assert run("keygen", new).exit_code == 0 and stat.S_IMODE(new.stat().st_mode) == 0o600
    assert run("keygen", new).exit_code == 2
    result = run("rekey", "--store", store, "--key-file", key, "--new-key-file", new)
    assert result.exit_code == 0, result.output
    assert run("status", "--store", store, "--key-file", new).exit_code == 0
    former = run("status", "--store", store, "--key-file", key)
    assert (former.exit_code, "the key at hand does not open it" in former.output) == (4, True)
    both = f"{key}{os.pathsep}{new}"
    assert run("status", "--store", store, "--key-file", both).exit_code == 0


def test_fsck_without_the_key(store: Path, run: Run) -> None:
    result = run("fsck", "--store", store, "--json")
    assert result.exit_code == 4 and "every record is as it was written, but none was read" in result.stderr
    found = json.loads(result.stdout)
    assert (found["sound"], found["findings"], found["head"]) == (False, [], 3)
    assert "unknown without the key" in run("fsck", "--store", store).stdout


def test_it_is_fixed_at_init(empty_store: Path, tmp_path: Path, run: Run, news: Path, making: list[str]) -> None:
    result = run("stream", news, "--store", empty_store, "--encrypt")
    assert (result.exit_code, "is not encrypted, and that is fixed at `init`" in result.output) == (2, True)
    result = run("init", "--store", tmp_path / "new", "--encrypt", *making)
    assert (result.exit_code, "no key was given" in result.output) == (4, True)
    assert not (tmp_path / "new").exists()


def test_a_followed_file_gives_the_digests_of_a_plain_store(
    store: Path, empty_store: Path, tmp_path: Path, run: Run, program: Program, key: Path, news: Path
) -> None:
    path = tmp_path / "later.jsonl"
    path.write_text("\n".join(fact_line(number) for number in (6, 7)) + "\n")
    process = program("stream", "--follow", path, "--store", store, "--key-file", key, "--batch-size", 2)
    assert process.stdout is not None
    assert [process.stdout.readline().split()[0] for _ in range(2)] == [b"step", b"4"]
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60) and process.returncode == 0
    for file in (news, path):
        assert run("stream", file, "--store", empty_store, "--batch-size", 2).exit_code == 0
    logs = [json.loads(run("log", "--store", s, "--key-file", key, "--json").stdout) for s in (store, empty_store)]
    one, other = ([step["weights_digest"] for step in log] for log in logs)
    assert len(one) == 5 and one == other
