"""`editors` lists every rule as it declares itself, without torch."""

from __future__ import annotations

import json
import subprocess
import sys

from click.testing import CliRunner

from lifelong_edit.cli import PROGRAM, cli
from lifelong_edit.editors.registry import RULES, rule_of


def run(*arguments: str) -> str:
    result = CliRunner().invoke(cli, ["editors", *arguments], prog_name=PROGRAM)
    assert result.exit_code == 0, result.output
    return result.output


def test_json_has_all_that_a_rule_declares() -> None:
    found = {rule["name"]: rule for rule in json.loads(run("--json"))}
    assert list(found) == list(RULES)
    for name, told in found.items():
        rule = rule_of(name)
        assert set(told["needs"]) == rule.needs and set(told["tasks"]) == rule.tasks
        assert set(told["exports"]) == rule.exports and set(told["trains"]) == rule.trains
        assert told["keeps"] == rule.further_parts
        assert (told["title"], told["reference"], told["relearns"]) == (rule.title, rule.reference, rule.relearns)
    assert found["ultraedit"]["keeps"] == ["moments"]
    assert found["memit"]["needs"] == ["subject", "text"] and "network" in found["malmen"]["trains"]


def test_the_table_has_a_line_for_each() -> None:
    head, *lines = run().splitlines()
    assert head.split() == ["name", "needs", "tasks", "exports", "keeps", "reference"]
    assert [line.split()[0] for line in lines] == list(RULES)
    assert "moments" in next(line for line in lines if line.startswith("ultraedit"))


def test_it_starts_without_torch() -> None:
    code = (
        "import sys; from lifelong_edit.cli import cli; cli(['editors'], standalone_mode=False); "
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60).stdout
    assert said.splitlines()[-1] == "set()"
