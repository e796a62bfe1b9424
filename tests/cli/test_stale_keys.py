"""How stale keys are, from the command line: measured now, and as a reconsolidation logged it."""

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


@pytest.fixture(autouse=True)
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guard without objections: a model with random weights is no judge of text."""
    monkeypatch.setattr("lifelong_edit.timeline.solving.objections", lambda before, after: [])


def data(result: Result) -> Any:
    """The JSON on stdout of a command that succeeded."""
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def tail(result: Result) -> list[list[str]]:
    """The lines of the table of keys, the line above it first."""
    assert result.exit_code == 0, result.output
    lines = result.stdout.split("\n\n")[1].splitlines()
    return [line.split() for line in lines]


def test_now(run: Run, store: Path) -> None:
    found = data(run("status", "--keys", "--json", "--store", store))
    assert found["head"] == 3
    stale = found["staleness"]
    assert (stale["state"], stale["live"], stale["sampled"]) == (3, 6, 6)
    modules = data(run("status", "--json", "--store", store))["modules"]
    above, head, *rows = tail(run("status", "--keys", "--store", store))
    assert " ".join(above) == "keys at step 3: 6 of 6 live facts"
    assert head == ["module", "age", "facts", "median", "p90"]
    assert [row[0] for row in rows] == [row["module"] for row in stale["drift"]]
    assert {row[0] for row in rows} == set(modules)
    assert [row[1] for row in rows].count("all") == len(modules)
    assert rows[-1][-1] == f"{stale['drift'][-1]['p90']:.3f}"


def test_as_logged(run: Run, store: Path) -> None:
    assert data(run("status", "--json", "--store", store))["staleness"] is None
    assert "keys at step" not in run("status", "--store", store).stdout
    now = data(run("status", "--keys", "--json", "--store", store))["staleness"]
    step = data(run("reconsolidate", "--store", store, "--json"))
    assert step["report"]["staleness"] == now
    assert data(run("show", 4, "--store", store, "--json"))["report"]["staleness"] == now
    assert data(run("status", "--json", "--store", store))["staleness"] == now
    shown = tail(run("show", 4, "--store", store))
    assert shown == tail(run("status", "--store", store))
    assert " ".join(shown[0]).startswith("keys at step 3:")


def test_status_alone_starts_without_torch(run: Run, store: Path) -> None:
    assert run("reconsolidate", "--store", store).exit_code == 0
    code = "import sys; from lifelong_edit.cli import cli; cli(standalone_mode=False); print('torch' in sys.modules)"
    command = [sys.executable, "-c", code, "status", "--store", str(store)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "keys at step 3" in done.stdout
    assert done.stdout.splitlines()[-1] == "False"
