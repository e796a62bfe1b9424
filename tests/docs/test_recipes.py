"""The recipes, in the small size that their page shows: they run, and find what they are there to find."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lifelong_edit.editors.registry import RULES, rule_of
from tests.docs.pages import RECIPES, REPOSITORY, Reader


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where somebody has followed the page, in a folder with facts and recipes as in a clone."""
    folder = tmp_path_factory.mktemp("recipes")
    for name in ("facts", "recipes"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    assert len(Reader(folder).read(RECIPES)) == 5
    return folder


def test_ageing_has_every_rule_that_needs_no_network() -> None:
    script = (REPOSITORY / "recipes" / "ageing.sh").read_text(encoding="utf-8")
    named = [rule for line in script.splitlines() if line.startswith("every") for rule in line.split('"')[1].split()]
    assert sorted(named) == sorted(rule for rule in RULES if "network" not in rule_of(rule).needs)


def found(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_each_study_has_its_arms_and_a_report(here: Path) -> None:
    arms = {"sizes": ["b1", "b8"], "risk": ["a0.5", "a1.0"], "ageing": ["gradient", "rect-around-gradient"]}
    for name, wanted in arms.items():
        assert [arm["arm"] for arm in found(here / name / "comparison.json")] == wanted
        assert (here / name / "report.html").stat().st_size > 10_000
    one, all_together = (arm["over_seeds"] for arm in found(here / "sizes" / "comparison.json"))
    assert one["efficacy"]["mean"] > 0 and all_together["efficacy"]["mean"] > 0
    half, whole = (arm["over_seeds"] for arm in found(here / "risk" / "comparison.json"))
    assert half["efficacy"]["mean"] <= whole["efficacy"]["mean"] > 0
    assert len((here / "ageing" / "facts.jsonl").read_text(encoding="utf-8").splitlines()) == 6


def test_a_model_that_breaks_is_found_and_the_alarm_came_before(here: Path) -> None:
    (course,) = found(here / "forgetting" / "found.json")
    assert course["rule"] == "ft" and course["worn"] <= course["alarm"] <= course["facts"] == len(course["curve"])
    assert course["curve"][course["alarm"] - 1]["perplexity"] > 1.5
    assert course["verdict"].startswith("the gate would have stopped it")


def test_butterflies_are_found_and_refused(here: Path) -> None:
    (told,) = found(here / "butterfly" / "found.json")
    edits = told["edits"]
    assert len(edits) == 3 and told["broken"] == sum(edit["perplexity"] > 1.5 for edit in edits) > 0
    assert told["refused"] == told["broken"]
    assert [edit["perplexity"] for edit in edits] == sorted((e["perplexity"] for e in edits), reverse=True)


@pytest.mark.parametrize(
    ("worn", "alarm", "broke", "verdict"),
    [
        (None, None, None, "did not break"),
        (3, None, 7, "broke without an alarm"),
        (3, 5, 7, "the gate would have stopped it before"),
        (3, 9, 7, "the alarm came too late"),
        (3, 5, None, "the gate would have stopped it; facts are answered still"),
    ],
)
def test_what_is_said_of_the_alarm(
    worn: int | None, alarm: int | None, broke: int | None, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "recipes")  # where a recipe finds what it shares with others
    course = importlib.import_module("forgetting").Course("r", worn=worn, alarm=alarm, broke=broke)
    assert course.verdict == verdict
