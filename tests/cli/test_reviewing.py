"""Conflicts on the command line: what is said of them, and a quarantine from the stream to the review and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

Run = Callable[..., Result]


def line(number: int, **changes: Any) -> str:
    name = f"Vienna {number}"
    return json.dumps({"subject": name, "prompt": f"The capital of {name} is", "relation": "capital", **changes})


def data(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def more(tmp_path: Path) -> Path:
    """Three contradictions of what the store holds, and a new fact."""
    path = tmp_path / "more.jsonl"
    targets = {0: "Belgrade", 1: "Sydney", 2: "Belgrade", 9: "Paris"}
    path.write_text("".join(line(number, target=target) + "\n" for number, target in targets.items()))
    return path


def answers(run: Run, store: Path, state: str = "live") -> dict[str, str]:
    found = data(run("facts", "--store", store, "--state", state, "--json"))
    return {fact["subject"]: fact["target"] for fact in found}


def test_from_quarantine_to_review_and_back(run: Run, store: Path, more: Path, tmp_path: Path) -> None:
    streamed = run("stream", more, "--store", store, "--conflicts", "quarantine")
    assert streamed.exit_code == 0
    assert "3 quarantined" in streamed.stderr
    assert "conflicts --out FILE" in streamed.stderr
    assert (data(run("status", "--store", store, "--json"))["quarantined"], len(answers(run, store))) == (3, 7)
    assert set(answers(run, store, "quarantined").values()) == {"Belgrade", "Sydney"}

    review = tmp_path / "review.jsonl"
    listed = run("conflicts", "--store", store, "--out", review)
    assert listed.stdout.count("contradiction") == 3
    assert "3 records in" in listed.stderr
    assert f"stream --reviewed {review} --store {store}" in listed.stderr
    lines = review.read_text().splitlines()
    first = json.loads(lines[0])
    assert (first["subject"], first["target"]) == ("Vienna 0", "Belgrade")
    (met,) = first["quarantined"]["met"]
    assert (met["kind"], met["probability"], met["target"]) == ("contradiction", 1.0, "Paris")
    taken = run("conflicts", "--store", store, "--out", review)
    assert (taken.exit_code, review.read_text().splitlines()) == (2, lines)
    assert "already there" in taken.stderr

    plain = data(run("stream", review, "--store", store, "--json"))  # it is input as it stands: nothing comes twice
    assert plain["summary"]["skipped"] == {"quarantined": 3}
    review.write_text("\n".join([lines[0], json.dumps(json.loads(lines[1]) | {"target": "Kenya"})]) + "\n")
    dry = data(run("stream", review, "--store", store, "--reviewed", "--dry-run", "--json"))
    assert [c["action"] for c in dry["batches"][0]["conflicts"]] == ["supersede", "supersede"]
    edited = data(run("stream", review, "--store", store, "--reviewed", "--json"))
    assert (edited["summary"]["facts"], edited["summary"]["conflicts"]) == (2, {"contradiction": 2})
    held = answers(run, store)
    assert (held["Vienna 0"], held["Vienna 1"], held["Vienna 2"]) == ("Belgrade", "Kenya", "Warsaw")
    again = data(run("stream", review, "--store", store, "--reviewed", "--json"))
    assert (again["summary"]["steps"], again["summary"]["skipped"]) == (0, {"reviewed": 2})

    (left,) = data(run("conflicts", "--store", store, "--quarantined", "--json"))
    assert (left["pending"], left["new_fact"]["subject"], left["old_fact"]["target"]) == (True, "Vienna 2", "Warsaw")
    assert run("dismiss", "nothing", "--store", store).exit_code == 2
    gone = run("dismiss", left["new"][:8], "--store", store, "--reason", "a hoax")
    assert "Belgrade" in gone.stdout
    assert data(run("status", "--store", store, "--json"))["quarantined"] == 0
    assert data(run("log", "--store", store, "--json"))[-1]["reason"] == "a hoax"
    assert "decide" in run("log", "--store", store).stdout
    assert data(run("log", "--store", store, "--json"))[-1]["how"] == "1 reviewed"
    shown = run("show", "head", "--store", store).stdout
    assert "out of quarantine" in shown and left["new"][:12] in shown
    empty = tmp_path / "none.jsonl"
    assert run("conflicts", "--store", store, "--out", empty).exit_code == 0
    assert empty.read_text() == ""


def test_conflicts_tell_what_became_of_facts(run: Run, store: Path, more: Path) -> None:
    assert data(run("conflicts", "--store", store, "--json")) == []
    assert "trusted_sources" not in run("status", "--store", store).stdout  # at its default
    assert run("stream", more, "--store", store, "--conflicts", "reject").exit_code == 0
    found = data(run("conflicts", "--store", store, "--json"))
    assert {(c["kind"], c["action"], c["by"], c["pending"]) for c in found} == {
        ("contradiction", "reject", "reject", False)
    }
    assert [c["new_fact"]["target"] for c in found] == ["Belgrade", "Sydney", "Belgrade"]
    assert all({"kind", "new", "old", "probability", "action"} <= c.keys() for c in found)
    assert data(run("conflicts", "--store", store, "--at", 3, "--json")) == []
    table = run("conflicts", "--store", store).stdout.splitlines()
    assert table[0].split()[:5] == ["step", "kind", "probability", "action", "by"]
    assert len(table) == 4
    assert len(answers(run, store)) == 7


def test_dates_decide_before_the_order_of_arrival(run: Run, store: Path, tmp_path: Path) -> None:
    path = tmp_path / "dated.jsonl"
    dated = [(0, "Belgrade", "2024-05"), (0, "Sydney", "2023"), (9, "Kenya", "2024"), (9, "Japan", "2025")]
    path.write_text("".join(line(n, target=target, date=date) + "\n" for n, target, date in dated))
    found = data(run("stream", path, "--store", store, "--json"))["batches"]
    actions = [c["action"] for batch in found for c in batch["conflicts"]]
    assert actions == ["supersede", "outranked", "supersede"]
    held = answers(run, store)
    assert (held["Vienna 0"], held["Vienna 9"]) == ("Belgrade", "Japan")
    path.write_text(line(0, target="Paris", date="yesterday"))
    bad = run("stream", path, "--store", store)
    assert (bad.exit_code, "dated.jsonl:1:" in bad.stderr, "ISO 8601" in bad.stderr) == (3, True, True)


def test_settings_of_conflicts(run: Run, making: list[str], tmp_path: Path) -> None:
    wrong = run("init", "--store", tmp_path / "a", *making, "--set", "conflict_policy=newest")
    assert (wrong.exit_code, "conflict_policy is 'newest'" in wrong.stderr) == (2, True)
    assert not (tmp_path / "a").exists()
    store = tmp_path / "b"
    settings = ("--set", "trusted_sources=registry, newsroom", "--set", "conflict_policy=quarantine")
    made = data(run("init", "--store", store, *making, *settings, "--json"))
    assert made["settings"]["trusted_sources"] == ["registry", "newsroom"]
    assert "trusted_sources" in run("show", 0, "--store", store, "--json").stdout
    path = tmp_path / "sources.jsonl"
    said = [("Paris", "newsroom"), ("London", "a blog"), ("Warsaw", "Registry")]
    path.write_text("".join(line(0, target=target, source=source) + "\n" for target, source in said))
    data(run("stream", path, "--store", store, "--conflicts", "supersede", "--json"))
    found = data(run("conflicts", "--store", store, "--json"))
    assert [(c["action"], c["by"]) for c in found] == [("outranked", "source"), ("supersede", "source")]
    assert answers(run, store) == {"Vienna 0": "Warsaw"}


def test_usage(run: Run, store: Path, more: Path, tmp_path: Path) -> None:
    both = run("stream", more, "--store", store, "--reviewed", "--conflicts", "keep")
    assert (both.exit_code, "what was reviewed supersedes" in both.stderr) == (2, True)
    assert run("stream", more, "--store", store, "--conflicts", "newest").exit_code == 2
    nowhere = run("conflicts", "--store", store, "--out", tmp_path / "no" / "where.jsonl")
    assert (nowhere.exit_code, "cannot write" in nowhere.stderr) == (2, True)
    nosuch = run("stream", more, "--store", tmp_path / "nosuch", "--reviewed")
    assert (nosuch.exit_code, (tmp_path / "nosuch").exists()) == (2, False)
    odd = run("facts", "--store", store, "--where", "state=nosuch")
    assert (odd.exit_code, "live, superseded, retracted" in odd.stderr) == (2, True)
    turned = data(run("stream", more, "--store", store, "--conflicts", "reject", "--json"))
    assert turned["summary"]["turned_away"] == {"reject": 3}
    rejected = run("show", turned["batches"][0]["step"], "--store", store).stdout
    assert rejected.count("reject") >= 1
    never = data(run("stream", more, "--store", store, "--reviewed", "--json"))
    assert never["summary"]["skipped"] == {"never-quarantined": 4}
