"""`compare`: one stream, several ways, a store for each."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from lifelong_edit.errors import BadInputError, UsageError
from lifelong_edit.eval.reports.comparison import FIGURES, Arm, over_seeds, parse_arm
from lifelong_edit.timeline import Timeline
from tests.cli.conftest import SETTINGS

Run = Callable[..., Result]


@pytest.fixture
def given(making: list[str], news: Path) -> list[str]:
    """The stream, and the model with what is preserved."""
    common = [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")]
    return [str(news), *making[:6], *common, "--batch-size", "3"]


def arm(name: str, more: str = "") -> list[str]:
    return ["--arm", f"{name}: {more}"]


def test_each_arm_and_seed_is_a_store_and_one_row(run: Run, given: list[str], tmp_path: Path) -> None:
    """The second time what is missing is done."""
    out = tmp_path / "out"
    options = [*given, "--out", out, "--seeds", "0,1", "--shuffle", "--json"]
    first = run("compare", *options, *arm("one"))
    assert first.exit_code == 0, first.output
    before = [(out / f"one-{seed}" / "HEAD").stat().st_mtime_ns for seed in (0, 1)]
    said = run("compare", *options, *arm("one"), *arm("two", "passes=2 reconsolidate=every:2 batch_size=2"))
    assert said.exit_code == 0, said.output
    assert [(out / f"one-{seed}" / "HEAD").stat().st_mtime_ns for seed in (0, 1)] == before
    assert f"asking {out / 'two-0'}" in said.stderr and f"asking {out / 'one-0'}" not in said.stderr
    results = json.loads(said.stdout)
    assert results[:1] == json.loads(first.stdout)
    assert [result["arm"] for result in results] == ["one", "two"]
    assert results == json.loads((out / "comparison.json").read_text())
    assert "one-0, one-1, two-0, two-1" in (out / "report.html").read_text()
    for result in results:
        assert [one["seed"] for one in result["runs"]] == [0, 1]
        for name in ("efficacy", "oldest", "generality", "locality", "perplexity", "seconds"):
            values = [one[name] for one in result["runs"]]
            told = result["over_seeds"][name]
            assert told["mean"] == pytest.approx(sum(values) / 2) and told["max"] == max(values)
    orders = []
    for seed in (0, 1):
        with Timeline.open(out / f"one-{seed}", read_only=True) as timeline:
            assert timeline.settings.seed == seed and [len(r.added) for r in timeline.log()] == [0, 3, 3]
            orders.append([digest for record in timeline.log() for digest in record.added])
            (whole,) = [found for found in timeline.measurements() if found.sample is None]
            assert whole.step == 2 and whole.share("efficacy") == results[0]["runs"][seed]["efficacy"]
        with Timeline.open(out / f"two-{seed}", read_only=True) as timeline:
            assert timeline.settings.passes == 2
            assert [r.kind[0] for r in timeline.log()][:4] == ["i", "e", "e", "r"]
    assert sorted(orders[0]) == sorted(orders[1]) and orders[0] != orders[1]


def test_an_arm_that_fails_is_named_and_the_others_are_there(run: Run, given: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "bad-0").mkdir(parents=True)
    (out / "bad-0" / "HEAD").write_text("what is this?")
    said = run("compare", *given, "--out", out, *arm("bad"), *arm("good"))
    assert said.exit_code == 1
    assert "arm bad, seed 0 ended with exit code 4; it said: error: " in said.stderr
    assert (out / "good-0" / "HEAD").is_file() and (out / "bad-0.log").is_file()


@pytest.mark.parametrize(
    ("more", "code", "match"),
    [
        ("modules=99", 2, "arm bad: .*99"),
        ("editor=malmen", 2, "arm bad: .*hypernetwork"),
        ("editor=gradient eta=much", 2, "arm bad: .*eta"),
        ("hypernetwork=nowhere", 2, "nowhere"),
    ],
)
def test_an_arm_of_which_no_store_can_be_made_is_refused_before_another_is_filled(
    run: Run, given: list[str], tmp_path: Path, more: str, code: int, match: str
) -> None:
    said = run("compare", *given, "--out", tmp_path / "out", *arm("good"), *arm("bad", more))
    assert said.exit_code == code, said.output
    assert re.search(match, said.stderr) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "a name has letters"),
        ("a/b: passes=1", "a name has letters"),
        ("a: passes", "each key once"),
        ("a: passes=1 passes=2", "each key once"),
        ("a: stride=1", "expected hypernetwork, settings, reconsolidate, batch_size or a setting of malmen"),
        ("a: editor=ft raet=1", "a setting of ft; near it: rate"),
        ("a: editor=retrieval+serac", "arm a: found retrieval around serac"),
        ("a: seed=1", "name seeds with --seeds"),
        ("a: modules='1", "No closing quotation"),
    ],
)
def test_what_is_no_arm(text: str, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        parse_arm(text)


def test_an_arm_is_options_of_stream() -> None:
    read = parse_arm("a.1: editor=gradient modules=0-2@subject,3-5 reconsolidate=every:2 eta=2.5")
    assert read == Arm(
        "a.1", {"editor": "gradient", "modules": "0-2@subject,3-5", "reconsolidate": "every:2", "eta": "2.5"}
    )
    wanted = "--seed 3 --batch-size 8 --reconsolidate every:2 --editor gradient --modules 0-2@subject,3-5 --set eta=2.5"
    assert read.arguments(3, 8) == wanted.split()
    assert parse_arm("network") == Arm("network", {})
    shared = read.arguments(3, 8, ["eta=1", "passes=4"])
    assert shared[-4:] == ["--set", "passes=4", "--set", "eta=2.5"]


def test_an_arm_has_the_rule_that_its_settings_were_chosen_for(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(json.dumps({"editor": "ft", "settings": {"rate": 0.1}}))
    read = parse_arm(f"a: settings={tmp_path} epochs=3")
    assert read.arguments(0, 8)[4:] == ["--settings", str(tmp_path), "--set", "epochs=3"]
    with pytest.raises(UsageError, match="a setting of ft"):
        parse_arm(f"a: settings={tmp_path} radius=3")
    with pytest.raises(BadInputError, match="arm a: nowhere holds no settings"):
        parse_arm("a: settings=nowhere")


def test_one_name_twice_and_seeds_that_are_none(run: Run, given: list[str], tmp_path: Path) -> None:
    out = ["--out", tmp_path / "out"]
    assert "two arms of one name" in run("compare", *given, *out, *arm("a"), *arm("a")).stderr
    assert "whole numbers by comma" in run("compare", *given, *out, *arm("a"), "--seeds", "0,x").stderr
    assert not (tmp_path / "out").exists()


def test_over_seeds_by_hand() -> None:
    run = dict.fromkeys(FIGURES, 0.5)
    found = over_seeds([run | {"efficacy": 0.2, "guard": None}, run | {"efficacy": 0.6}])
    assert found["efficacy"] == {"mean": pytest.approx(0.4), "min": 0.2, "max": 0.6}
    assert found["guard"] is None and found["locality"] == {"mean": 0.5, "min": 0.5, "max": 0.5}
