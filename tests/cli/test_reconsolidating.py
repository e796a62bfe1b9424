"""Solving again from the command line: asked for, by a policy in a stream, and refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from lifelong_edit.timeline import Timeline

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guard without objections: a model with random weights is no judge of text."""
    objecting(monkeypatch)


def objecting(monkeypatch: pytest.MonkeyPatch, *found: str) -> None:
    monkeypatch.setattr("lifelong_edit.timeline.solving.objections", lambda before, after: list(found))


def data(result: Result) -> Any:
    """The JSON on stdout of a command that succeeded."""
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_reconsolidate(run: Run, store: Path) -> None:
    before = data(run("status", "--store", store, "--json"))
    result = run("reconsolidate", "--store", store, "--reason", "spring")
    assert result.exit_code == 0, result.output
    head, row = result.stdout.splitlines()
    names = ["step", "kind", "passes", "retention", "locality", "perplexity", "seconds", "weights_digest"]
    assert head.split() == names
    assert row.split()[:2] == ["4", "reconsolidate"]
    assert row.count(" → ") == 2
    assert "not measured" in row  # eight preserved prompts are too few for a guard
    passes = int(row.split()[2])
    assert [line.split(":")[0] for line in result.stderr.splitlines() if line.startswith("pass ")] == [
        f"pass {number + 1} over 6 facts and 8 preserved prompts" for number in range(passes)
    ]
    after = data(run("status", "--store", store, "--json"))
    assert (after["head"], after["live_digest"]) == (4, before["live_digest"])
    assert row.split()[-1] == after["weights_digest"][:12] != before["weights_digest"][:12]
    last = data(run("log", "--store", store, "--json"))[-1]
    assert (last["kind"], last["facts"], last["reason"]) == ("reconsolidate", 0, "spring")
    assert run("log", "--store", store).stdout.splitlines()[-1].split()[:4] == ["4", "reconsolidate", "canonical", "3"]
    shown = run("show", 4, "--store", store).stdout
    assert " ".join(row.split()[row.split().index("→") - 1 :][:3]) in " ".join(shown.split())
    assert (
        last["perplexity"] == data(run("show", 4, "--store", store, "--json"))["report"]["guard"]["after"]["perplexity"]
    )
    assert len(data(run("eval", "--store", store, "--json"))["batches"]) == 3
    back = data(run("rollback", 3, "--store", store, "--json"))
    assert back["weights_digest"] == before["weights_digest"]


def test_it_asks_as_many_as_the_stream_did(run: Run, store: Path, empty_store: Path, news: Path) -> None:
    """Where that asked nothing, this asks nothing."""
    assert run("reconsolidate", "--no-guard", "--store", store).exit_code == 0
    with Timeline.open(store, read_only=True) as timeline:
        last = timeline.measurements("head")[-1]
        assert (last.step, last.sample) == (timeline.head, timeline.measurements()[-2].sample)
        assert {o.measure for o in last.outcomes} >= {"efficacy", "locality"}
    assert run("stream", news, "--store", empty_store, "--measure", 0).exit_code == 0
    assert run("reconsolidate", "--no-guard", "--store", empty_store).exit_code == 0
    with Timeline.open(empty_store, read_only=True) as timeline:
        assert not timeline.measurements()


def test_start_and_json(run: Run, store: Path) -> None:
    cold = data(run("reconsolidate", "--store", store, "--json"))
    assert (cold["step"], cold["kind"], cold["report"]["start"]) == (4, "reconsolidate", 0)
    assert data(run("reconsolidate", "--store", store, "--json"))["weights_digest"] == cold["weights_digest"]
    warm = data(run("reconsolidate", "--start", 0.3, "--store", store, "--json"))
    assert warm["report"]["start"] == 0.3
    assert warm["weights_digest"] != cold["weights_digest"]
    assert warm["how"] == "warm from 0.3"


def test_refused(run: Run, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objecting(monkeypatch, "retention falls from 0.900 to 0.100")
    before = data(run("status", "--store", store, "--json"))
    result = run("reconsolidate", "--store", store)
    assert result.exit_code == 1
    assert result.stdout.splitlines()[1].split()[:2] == ["4", "refused"]
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: the reconsolidation was refused: retention falls from 0.900 to 0.100;")
    assert "Traceback" not in result.stderr
    after = data(run("status", "--store", store, "--json"))
    assert (after["head"], after["state"], after["weights_digest"]) == (4, 3, before["weights_digest"])
    assert "refused" in run("log", "--store", store).stdout.splitlines()[-1]
    assert "retention falls from 0.900 to 0.100" in run("show", 4, "--store", store).stdout
    asked = run("reconsolidate", "--store", store, "--json")
    assert (asked.exit_code, json.loads(asked.stdout)["kind"]) == (1, "refused")
    unguarded = data(run("reconsolidate", "--no-guard", "--store", store, "--json"))
    assert (unguarded["kind"], unguarded["how"]) == ("reconsolidate", "canonical, unguarded")
    shown = run("show", 6, "--store", store).stdout
    assert "unguarded" in shown and "retention falls from 0.900 to 0.100" in shown


@pytest.mark.parametrize("start", ["-0.1", "1.5", "much"])
def test_wrong_start(run: Run, store: Path, start: str) -> None:
    assert run("reconsolidate", "--start", start, "--store", store).exit_code == 2


def test_without_facts(run: Run, empty_store: Path) -> None:
    result = run("reconsolidate", "--store", empty_store)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: the store has no live facts")


def test_stream_with_a_policy(run: Run, empty_store: Path, news: Path) -> None:
    result = run("stream", news, "--store", empty_store, "--batch-size", 2, "--reconsolidate", "every:2")
    assert result.exit_code == 0, result.output
    assert [row.split()[:3] for row in result.stdout.splitlines()[1:]] == [
        ["1", "2", "2"], ["2", "2", "2"], ["3", "-", "-"], ["4", "2", "2"]
    ]  # fmt: skip
    assert "pass 1 over 4 facts" in result.stderr
    assert "step 3 reconsolidates all live facts: retention " in result.stderr
    assert "6 facts in 3 steps" in result.stderr
    assert "; 1 reconsolidation; the head is step 4" in result.stderr
    log = data(run("log", "--store", empty_store, "--json"))
    assert [step["kind"] for step in log] == ["init", "edit", "edit", "reconsolidate", "edit"]
    assert log[3]["reason"] == "every:2"


def test_stream_with_a_policy_as_json(run: Run, empty_store: Path, news: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objecting(monkeypatch, "it is Monday")
    options = ("--store", empty_store, "--batch-size", 2, "--reconsolidate", "every:2", "--json")
    result = run("stream", news, *options)
    found = data(result)
    assert [batch["step"] for batch in found["batches"]] == [1, 2, 4]
    (refused,) = found["reconsolidations"]
    assert (refused["step"], refused["refused"], refused["report"]["objections"]) == (3, True, ["it is Monday"])
    assert (found["summary"]["reconsolidations"], found["summary"]["refused"]) == (0, 1)
    assert "the reconsolidation was refused: it is Monday; step 3" in result.stderr


@pytest.mark.parametrize("policy", ["forecast:1.1", "forecast:", "every:0", "sometimes"])
def test_unknown_policy(run: Run, empty_store: Path, news: Path, policy: str) -> None:
    result = run("stream", news, "--store", empty_store, "--reconsolidate", policy)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "expected" in result.stderr.splitlines()[-1]


def test_dry_run_reconsolidates_nothing(run: Run, store: Path, news: Path) -> None:
    found = data(run("stream", news, "--store", store, "--dry-run", "--reconsolidate", "every:1", "--json"))
    assert found["reconsolidations"] == []
    assert data(run("status", "--store", store, "--json"))["head"] == 3
