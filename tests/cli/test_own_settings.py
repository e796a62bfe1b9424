"""A rule whose settings are its own: from the command line into a store, and from there into what is shown."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import click
import msgspec
import pytest
from click.testing import Result

from lifelong_edit.cli.setup import init
from lifelong_edit.editors import registry
from lifelong_edit.errors import UsageError
from lifelong_edit.eval.reports.comparison import parse_arm
from lifelong_edit.eval.reports.data import gather
from lifelong_edit.eval.reports.page import provenance
from lifelong_edit.timeline import Timeline
from lifelong_edit.timeline.defaults import start_of
from tests.cli import nudge
from tests.cli.conftest import refused

Run = Callable[..., Result]
SHARED = {"text_tokens": 2000, "micro_batch": 8, "gate_perplexity": 1e9, "conflict_cosine": 0.9999}


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule as one line in the registry would have it, which `--editor` read when it was imported."""
    names = (*registry.RULES, "nudge")
    monkeypatch.setattr(registry, "RULES", names)
    monkeypatch.setitem(sys.modules, "lifelong_edit.editors.nudge", nudge)
    (option,) = [option for option in init.params if option.name == "editor"]
    assert isinstance(option.type, click.Choice)
    monkeypatch.setattr(option.type, "choices", names)


@pytest.fixture
def command(making: list[str]) -> list[str]:
    """The options of `init` and `stream` for a store of the tiny model, those that only other rules have left out."""
    return [*making[:6], *(part for name, value in SHARED.items() for part in ("--set", f"{name}={value}"))]


@pytest.mark.parametrize("named", [["--editor", "nudge"], ["--set", "editor=nudge"]], ids=["option", "setting"])
@pytest.mark.usefixtures("no_model")
def test_what_the_rule_does_not_take_is_refused_before_a_model_is_loaded(
    run: Run, tmp_path: Path, command: list[str], named: list[str]
) -> None:
    chosen = tmp_path / "settings.json"
    chosen.write_bytes(msgspec.json.encode({"settings": {"passes": 2}}))
    making = ["--store", tmp_path / "s", *command, *named]
    wanted = (
        "expected NAME=VALUE with one of modules, device,",
        "conflict_policy, trusted_sources, form, system, solve_device, radius, marks",
    )
    for pair in ("ask=joint", "reconsolidation_eta=1", "diameter=4"):
        refused(run("init", *making, "--set", pair), 2, f"found --set {pair!r}", *wanted)
    for value in ("0", "-1", "wide"):
        refused(
            run("init", *making, "--set", f"radius={value}"), 2, "setting radius is", "must be a number greater than"
        )
    refused(run("init", *making, "--settings", chosen), 3, "settings.json", "passes")
    assert "a model was loaded" in run("init", *making, "--set", "radius=2").stderr  # the control
    refused(run("init", "--store", tmp_path / "s", *command, "--set", "radius=2"), 2, "found --set 'radius=2'")


def test_a_store_of_the_rule_is_made_shown_and_reported(
    run: Run, tmp_path: Path, command: list[str], news: Path
) -> None:
    store, own = tmp_path / "store", ["--editor", "nudge", "--set", "radius=2", "--set", "marks=a,b"]
    made = run("init", "--store", store, *command, *own)
    assert made.exit_code == 0, made.output
    streamed = run("stream", news, "--store", store, *command, *own, "--batch-size", 3)
    assert streamed.exit_code == 0, streamed.output
    for said in (made.stdout, run("status", "--store", store).stdout):
        (line,) = [line for line in said.splitlines() if line.startswith("settings ")]
        assert set(line.split()[1:]) >= {"radius=2.0", "marks=a,b", "micro_batch=8"} and "editor=" not in line
        assert ["editor", "nudge"] in [line.split() for line in said.splitlines()]
    found = json.loads(run("status", "--store", store, "--json").stdout)
    assert (found["editor"], found["head"]) == ("nudge", 2)
    assert set(found["settings"]) == set(nudge.NudgeSettings.__struct_fields__)
    page = run("report", store, "--out", tmp_path / "report.html")
    assert page.exit_code == 0, page.output
    with Timeline.open(store, read_only=True) as timeline:
        assert timeline.settings == nudge.NudgeSettings(editor="nudge", radius=2, marks=("a", "b"), **SHARED)  # type: ignore[arg-type]
        told = provenance(gather(timeline, "store"))
    assert "radius = 2.0" in dict(told.facts)["settings changed"]
    assert "--set radius=2.0 --set marks=a,b" in told.commands[0]


def test_another_value_or_rule_than_the_stores_is_refused(
    run: Run, tmp_path: Path, command: list[str], news: Path
) -> None:
    """The rule need not be named again; and of another rule's settings none is asked for in the store."""
    store, stream = tmp_path / "store", ["stream", news, "--store", tmp_path / "store"]
    assert run("init", "--store", store, *command, "--editor", "nudge", "--set", "radius=2").exit_code == 0
    refused(run(*stream, "--set", "radius=3"), 2, "was made with radius 2.0, not 3.0")
    refused(run(*stream, "--set", "passes=3"), 2, "found --set 'passes=3'", "radius")
    refused(run(*stream, "--editor", "gradient", "--set", "ask=joint"), 2, "was made with editor 'nudge'")


def test_an_arm_has_the_settings_of_its_rule() -> None:
    assert parse_arm("a: editor=nudge radius=2").options == {"editor": "nudge", "radius": "2"}
    assert parse_arm("a: radius=2", "nudge").options == {"radius": "2"}
    for text, editor in (("a: radius=2", None), ("a: editor=gradient radius=2", "nudge"), ("a: passes=2", "nudge")):
        with pytest.raises(UsageError, match="or a setting of"):
            parse_arm(text, editor)


def test_settings_of_another_rule_are_refused_in_python() -> None:
    """The store would be made, and could not be opened."""
    with pytest.raises(UsageError, match="NudgeSettings for the editing rule gradient, expected RidgeSettings"):
        start_of("atlas", nudge.NudgeSettings(), None)
    assert start_of("atlas", nudge.NudgeSettings(editor="nudge"), None)[1] is None
