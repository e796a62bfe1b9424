"""`editors` lists every rule as it declares itself, without torch."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from lifelong_edit.cli import PROGRAM, cli
from lifelong_edit.editors.registry import RULES, rule_of
from lifelong_edit.editors.sizes import sizes
from lifelong_edit.editors.wrapping import WRAPPERS, refusal
from lifelong_edit.eval.reports.comparison import parse_arm
from lifelong_edit.facts import read_facts
from lifelong_edit.timeline import Timeline
from tests.cli.conftest import SETTINGS, refused

Run = Callable[..., Result]


def said(*arguments: str) -> str:
    result = CliRunner().invoke(cli, ["editors", *arguments], prog_name=PROGRAM)
    assert result.exit_code == 0, result.output
    return result.output


def test_json_has_all_that_a_rule_declares() -> None:
    found = {rule["name"]: rule for rule in json.loads(said("--json"))}
    assert list(found) == list(RULES)
    for name, told in found.items():
        rule = rule_of(name)
        assert set(told["needs"]) == rule.needs and set(told["tasks"]) == rule.tasks
        assert set(told["exports"]) == rule.exports and set(told["trains"]) == rule.trains
        assert told["keeps"] == rule.further_parts
        assert told["wrappers"] == [wrapper for wrapper in WRAPPERS if not refusal(wrapper, rule)]
        assert (told["title"], told["reference"], told["relearns"]) == (rule.title, rule.reference, rule.relearns)
    assert found["ultraedit"]["keeps"] == ["moments"]
    assert found["memit"]["needs"] == ["subject", "text"] and "network" in found["malmen"]["trains"]


def test_the_table_has_a_line_for_each() -> None:
    head, *lines = said().splitlines()
    assert head.split() == ["name", "needs", "tasks", "exports", "keeps", "bytes", "wrappers", "reference"]
    assert [line.split()[0] for line in lines] == list(RULES)
    assert "moments" in next(line for line in lines if line.startswith("ultraedit"))


def test_bytes_are_those_that_were_measured_of_all_rules() -> None:
    """And those of a rule that is quick are measured again."""
    assert list(sizes().bytes) == list(RULES)
    script = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "edit-bytes.py"))
    assert script["FACTS"] == sizes().facts
    assert script["measured"]("retrieval") == sizes().bytes["retrieval"] == json_of("retrieval")["bytes"]


def json_of(name: str) -> dict[str, Any]:
    return next(rule for rule in json.loads(said("--json")) if rule["name"] == name)


def test_it_starts_without_torch() -> None:
    code = (
        "import sys; from lifelong_edit.cli import cli; cli(['editors'], standalone_mode=False); "
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    assert printed.splitlines()[-1] == "set()"


def test_wrappers_have_a_table_of_their_own() -> None:
    found = {wrapper["name"]: wrapper for wrapper in json.loads(said("--wrappers", "--json"))}
    assert list(found) == list(WRAPPERS) and found["rect"]["settings"] == ["keep"]
    assert found["nas"]["keeps"] == ["lengths"]
    assert [line.split()[0] for line in said("--wrappers").splitlines()[1:]] == list(WRAPPERS)
    rules = {rule["name"]: rule["wrappers"] for rule in json.loads(said("--json"))}
    assert rules["memit"] == list(WRAPPERS) and "nas" not in rules["gradient"]
    assert (rules["grace"], rules["serac"]) == (["retrieval"], [])


def test_a_store_of_a_wrapped_rule_is_made_streamed_taken_back_and_exported(
    run: Run, tmp_path: Path, making: list[str], news: Path
) -> None:
    """Named as one rule, wherever a rule is named, with the settings of both."""
    store, common = tmp_path / "store", [p for n, v in SETTINGS.items() for p in ("--set", f"{n}={v}")]
    own = ["--editor", "rect+gradient", "--set", "keep=0.3"]
    made = run("init", "--store", store, *making[:6], *common, *own)
    assert made.exit_code == 0, made.output
    assert "rect+gradient" in made.stdout and "keep=0.3" in made.stdout.split()
    for command in (
        ["stream", news, *own, "--batch-size", 3],
        ["reconsolidate"],
        ["retract", next(read_facts([str(news)])).fact.digest],
        ["rollback", 1],
        ["export", "--out", tmp_path / "out"],
        ["fsck"],
    ):
        result = run(command[0], *command[1:], "--store", store)
        assert result.exit_code == 0, result.output
    with Timeline.open(store, read_only=True) as timeline:
        assert timeline.settings.editor == "rect+gradient" and [step.kind for step in timeline.log()][-1] == "rollback"
        share = [float((shift != 0).mean()) for shift in timeline.weights(1).values()]
        assert all(abs(found - 0.3) < 0.01 for found in share), share
    refused(run("stream", news, "--store", store, "--set", "keep=0.4"), 2, "was made with keep 0.3, not 0.4")
    assert parse_arm("a: editor=simie+memit anchor=2").options["anchor"] == "2"


def test_what_cannot_be_wrapped_is_refused_before_anything_is_loaded(
    run: Run, tmp_path: Path, making: list[str]
) -> None:
    for name, words in (
        ("rect+grace", "does not bring weight shifts alone"),
        ("warp+memit", "found the wrapper 'warp'; expected one of li, rect, prune, simie, nas, retrieval"),
        ("rect", "found the wrapper 'rect' in a rule's place; expected a rule last, as rect+memit"),
        ("memit+rect", "found the wrapper 'rect' in a rule's place"),
        ("gradient+retrieval", "a wrapper stands first, as in retrieval+gradient"),
        ("retrieval+serac", "the rule serac remembers the live facts itself"),
        ("nas+gradient", "expected a rule that searches hidden states"),
    ):
        for how in (["--editor", name], ["--set", f"editor={name}"]):
            refused(run("init", "--store", tmp_path / "s", *making[:6], *how), 2, words)
    assert not (tmp_path / "s").exists()
