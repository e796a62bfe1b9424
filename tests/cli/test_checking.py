"""What files hold is shown before any store is touched; what a store lists makes the same store again."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

Run = Callable[..., Result]
ROWS = "ask,say,nr,date\nWhere is Lima?,Peru,1,2031\nWhere is Arica?,Chile,2,2032\n"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Two questions under names that nobody knows."""
    path = tmp_path / "faq.csv"
    path.write_text(ROWS)
    return path


def test_check_shows_what_files_are_read_as(run: Run, table: Path, tmp_path: Path) -> None:
    chat = tmp_path / "chat.jsonl"
    turns = [{"role": "user", "content": "Where is Lima?"}, {"role": "assistant", "content": "In Peru."}]
    chat.write_text(json.dumps({"messages": turns, "topic": "towns"}) + '\n{"label": "x"}\n')
    nowhere = {"LIFELONG_STORE": str(tmp_path / "none")}
    shown = run("facts", "--check", table, "--map", "prompt=ask,target=say", env=nowhere)
    assert shown.exit_code == 0, shown.output
    assert "mapped (2)" in shown.stdout and "Where is Arica?" in shown.stdout
    assert "fields that were not used (in so many records): nr (2)" in shown.stdout
    assert "facts without: subject (all)" in shown.stdout and "date" not in shown.stdout.split("without:")[1]
    bad = run("facts", "--check", chat, table, "--json", env=nowhere)
    assert bad.exit_code == 3 and "found 3 bad records" in bad.stderr
    first, second = json.loads(bad.stdout)
    assert (first["shapes"], first["facts"], first["bad"]) == ({"conversation": 1}, 1, 1)
    assert first["unused"] == {"topic": 1} and first["first"][0]["target"] == "In Peru."
    assert second["bad_records"][0].startswith(f"{table}:2: found a record with the keys 'ask', 'say'")
    assert not (tmp_path / "none").exists()


def test_a_map_that_names_no_field_is_told_with_those_that_are_there(run: Run, table: Path, tmp_path: Path) -> None:
    wrong = run("facts", "--check", table, "--map", "prompt=question,target=say")
    assert wrong.exit_code == 3 and "without 'question', which --map calls its prompt" in wrong.stdout
    assert "'ask'" in wrong.stdout
    none = run("facts", "--check", table, "--map", "prompt=x,target=y")
    assert "expected those that --map names ('x', 'y')" in none.stdout
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is Lima?"}]
    chat, record = tmp_path / "chat.json", {"messages": [*turns, {"role": "assistant", "content": "In Peru."}]}
    chat.write_text(json.dumps([record, *[{"label": "x"}] * 7]))
    mixed = run("facts", "--check", table, chat, "--map", "prompt=ask,target=say")
    assert "mapped (2)" in mixed.stdout and "conversation (1)" in mixed.stdout
    assert f"bad: {chat}:1 (record 2 of that line): found" in mixed.stdout
    assert f"bad: 2 more of {chat}" in mixed.stdout and "(record 8 of" not in mixed.stdout


def test_check_is_asked_for(run: Run, table: Path, tmp_path: Path) -> None:
    for given, told in (
        (["facts", "--check"], "without files"),
        (["facts", table], "without --check"),
        (["facts", "--check", table, "--map", "prompt=ask"], "without 'target'"),
        (["facts", "--check", table, "--map", "prompt=ask,target=say", "--relations", table], "one of them"),
        (["facts", "--check", "x" * 300], "found no file"),
    ):
        result = run(*given, "--store", tmp_path / "none")
        assert result.exit_code == 2 and told in result.stderr, result.output


def test_what_is_not_used_is_named_and_what_is_listed_comes_back(
    run: Run, table: Path, tmp_path: Path, making: list[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    told = run("stream", table, "--map", "prompt=ask,target=say", "--store", first, *making, "--json")
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["summary"]["unused"] == {"nr": 2}
    assert "fields that were not used (in so many records): nr (2)" in told.stderr
    listed = run("facts", "--store", first, "--json", "--state", "all").stdout
    (tmp_path / "listed.json").write_text(listed)
    facts: list[dict[str, Any]] = json.loads(listed)
    assert [fact["state"] for fact in facts] == ["live", "live"] and "subject" not in facts[0]
    assert run("stream", tmp_path / "listed.json", "--store", second, *making).exit_code == 0
    again = json.loads(run("facts", "--store", second, "--json").stdout)
    assert [fact["digest"] for fact in again] == [fact["digest"] for fact in facts]


def test_places_that_cannot_be_are_told_as_such(run: Run, table: Path) -> None:
    result = run("facts", "--store", table)
    assert result.exit_code == 4 and f"found the file {table}, expected the folder of a store" in result.stderr
    command = [sys.executable, "-m", "lifelong_edit", "facts", "--check", str(table), "--map", "prompt=ask,target=say"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1 and "no space left on device" in done.stderr and "Error" not in done.stderr
