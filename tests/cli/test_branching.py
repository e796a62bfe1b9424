"""Tags, branches, switching and comparing from the command line, and who made which step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from lifelong_edit.timeline.diff import SAMPLE

Run = Callable[..., Result]


def data(result: Result) -> Any:
    """The JSON on stdout of a command that succeeded."""
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def rows(result: Result) -> list[list[str]]:
    """The cells of a table on stdout, its head left out."""
    assert result.exit_code == 0, result.output
    return [line.split() for line in result.stdout.splitlines()[1:]]


def test_names_stand_wherever_a_step_is_asked_for(run: Run, store: Path) -> None:
    made = run("tag", "release-1", 1, "--store", store, "--reason", "checked")
    assert rows(made)[0][:5] == ["4", "tag", "release-1", "at", "1"]
    assert data(run("tag", "--store", store, "--json"))[0] | {"time": ""} == {
        "name": "release-1",
        "step": 1,
        "live_facts": 2,
        "time": "",
    }
    assert rows(run("tag", "--store", store))[0][:3] == ["release-1", "1", "2"]
    first = data(run("show", 1, "--store", store, "--json"))
    assert data(run("show", "release-1", "--store", store, "--json")) == first
    prompt = "The capital of Vienna 0 is"
    assert data(run("ask", prompt, "--at", "release-1", "--store", store, "--json"))["step"] == 1
    assert len(data(run("facts", "--at", "release-1", "--store", store, "--json"))) == 2
    assert data(run("eval", "--at", "release-1", "--store", store, "--json"))["step"] == 1
    back = data(run("rollback", "release-1", "--store", store, "--json"))
    assert (back["parent"], back["weights_digest"]) == (1, first["weights_digest"])
    assert data(run("rollback", "head", "--store", store, "--json"))["parent"] == 1
    gone = data(run("tag", "release-1", "--delete", "--store", store, "--json"))
    assert (gone["kind"], gone["name"], gone["named"], gone["how"]) == ("tag", "release-1", None, "release-1 deleted")
    assert data(run("tag", "--store", store, "--json")) == []


def test_branches(run: Run, store: Path, news: Path) -> None:
    begun = data(run("branch", "trial", 1, "--store", store, "--json"))
    assert (begun["kind"], begun["how"], begun["parent"]) == ("branch", "trial at 1", 1)
    # The file was streamed on main; of it this branch has the first two records.
    again = data(run("stream", news, "--store", store, "--batch-size", 4, "--json"))
    assert (again["summary"]["facts"], again["summary"]["skipped"]) == (4, {"consumed": 2})
    table = rows(run("branch", "--store", store))
    assert [row[:4] for row in table] == [["main", "3", "3", "6"], ["*", "trial", "6", "6"]]
    listed = data(run("branch", "--store", store, "--json"))
    assert [(b["name"], b["current"], b["tip"], b["live_facts"]) for b in listed] == [
        ("main", False, 3, 6),
        ("trial", True, 6, 6),
    ]
    log = data(run("log", "--store", store, "--json"))
    assert [step["branch"] for step in log] == ["main"] * 4 + ["trial"] * 3
    assert " branch " in run("log", "--store", store).stdout.splitlines()[0]
    assert data(run("switch", "main", "--store", store, "--json"))["how"] == "to main"
    status = data(run("status", "--store", store, "--json"))
    assert (status["branch"], status["state"], status["head"]) == ("main", 3, 7)
    assert "already: nothing was done" in run("switch", "main", "--store", store).stderr
    assert rows(run("branch", "trial", "--delete", "--store", store))[0][:4] == ["8", "branch", "trial", "deleted"]
    assert [b["name"] for b in data(run("branch", "--store", store, "--json"))] == ["main"]


def test_diff(run: Run, store: Path) -> None:
    run("branch", "trial", 1, "--store", store)
    found = data(run("diff", "main", "trial", "--store", store, "--json"))
    assert (found["from"], found["to"], found["ancestor"], found["kept"]) == (3, 1, 1, 2)
    assert [fact["subject"] for fact in found["unknown"]] == [f"Vienna {n}" for n in range(2, 6)]
    assert found["added"] == found["superseded"] == found["retracted"] == []
    assert all(change["norm"] > 0 and change["share"] > 0 for change in found["weights"].values())
    assert (found["asked"], found["answers"]) == (None, None)
    assert all(c["share"] is None for c in data(run("diff", 0, 1, "--store", store, "--json"))["weights"].values())
    result = run("diff", 2, 3, "--store", store)
    table = rows(result)
    assert [row[0] for row in table[:2]] == ["added", "added"]
    assert result.stderr.startswith("from step 2 to step 3, last state in common 2: 4 facts in force at both")
    assert data(run("diff", 1, "--store", store, "--json"))["to"] == 4  # the head, if left out


def test_diff_of_answers(run: Run, store: Path) -> None:
    found = data(run("diff", 0, 3, "--answers", "--store", store, "--json"))
    assert found["asked"] == 6
    assert 0 < len(found["answers"]) <= 6
    assert all(answer["before"] != answer["after"] for answer in found["answers"])
    result = run("diff", 2, 3, "--answers", "--sample", 1, "--store", store)
    assert "of 3 answers changed" in result.stderr
    few = run("diff", 2, 3, "--sample", 1, "--store", store)
    assert (few.exit_code, few.stdout) == (2, "") and "--sample without --answers" in few.stderr
    assert f"Default: {SAMPLE}." in " ".join(run("diff", "--help").stdout.split())


def test_what_became_of_facts_in_a_diff(run: Run, store: Path, tmp_path: Path) -> None:
    first = data(run("facts", "--store", store, "--json"))
    newer = {k: v for k, v in first[0].items() if k != "digest"} | {"target": "Kenya"}
    (tmp_path / "newer.jsonl").write_text(json.dumps(newer))
    assert run("stream", tmp_path / "newer.jsonl", "--store", store).exit_code == 0
    assert run("retract", first[1]["digest"], "--store", store).exit_code == 0
    found = data(run("diff", 3, "--store", store, "--json"))
    assert [fact["digest"] for fact in found["superseded"]] == [first[0]["digest"]]
    assert found["superseded"][0]["by"] == found["added"][0]["digest"]
    assert [fact["digest"] for fact in found["retracted"]] == [first[1]["digest"]]
    assert {row[0]: row[-1] for row in rows(run("diff", 3, "--store", store))[:3]} == {
        "added": "Kenya",
        "superseded": "Kenya",
        "retracted": "London",
    }


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (["switch", "nowhere"], "there is no branch 'nowhere'; expected one of main"),
        (["branch", "7"], "found the name '7'"),
        (["branch", "x", "nowhere"], "'nowhere' names no step; expected a number from 0 to 3, or one of main"),
        (["branch", "main"], "there is a branch 'main' already"),
        (["branch", "main", "--delete"], "'main' cannot be deleted"),
        (["branch", "--delete"], "found --delete with no name"),
        (["tag", "x", "1", "--delete"], "found --delete with the step '1'"),
        (["tag", "x", "--delete"], "there is no tag 'x'; expected none, for there are none"),
        (["rollback", "x"], "'x' names no step"),
        (["rollback", "9"], "there is no step 9; the log holds steps 0 to 3"),
        (["show", "x"], "'x' names no step"),
        (["diff", "0", "9"], "there is no step 9"),
        (["facts", "--at", "x"], "'x' names no step"),
        (["ask", "p", "--at", "-1"], "there is no step -1"),
        (["facts", "--where", "colour=red"], "expected FIELD=VALUE or FIELD~TEXT with one of subject, prompt, target"),
        (["facts", "--state", "live", "--where", "state=live"], "found --state and a condition on the state"),
    ],
)
def test_wrong_names_and_fields(run: Run, store: Path, command: list[str], why: str) -> None:
    result = run(*command, "--store", store)
    assert (result.exit_code, result.stdout) == (2, "")
    assert why in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert data(run("status", "--store", store, "--json"))["head"] == 3


def test_who_made_a_step(run: Run, store: Path, tmp_path: Path, making: list[str], news: Path) -> None:
    by_name = {"LIFELONG_AUTHOR": "Ada"}
    run("tag", "a", "--store", store, env=by_name)
    run("tag", "b", "--store", store, "--author", "Grace", env=by_name)
    run("rollback", 1, "--store", store, "--author", "Emmy")
    run("tag", "c", "--store", store, env={"LIFELONG_AUTHOR": None, "LOGNAME": "login"})
    assert [s["author"] for s in data(run("log", "--store", store, "--json"))[4:]] == ["Ada", "Grace", "Emmy", "login"]
    table = run("log", "--store", store, "--last", 2).stdout.splitlines()
    assert "author" in table[0].split() and "Emmy" in table[1]
    assert any(line.split() == ["author", "Grace"] for line in run("show", 5, "--store", store).stdout.splitlines())
    made = tmp_path / "made"
    assert run("stream", news, "--store", made, *making, "--author", "Ada").exit_code == 0
    assert {step["author"] for step in data(run("log", "--store", made, "--json"))} == {"Ada"}


def test_sources_and_conditions(run: Run, empty_store: Path, tmp_path: Path) -> None:
    lines = []
    for number, source in enumerate(["gazette", "wire", "gazette", None]):
        record = {"subject": f"Vienna {number}", "prompt": f"Vienna {number} lies in", "target": "Paris"}
        record |= {"date": f"2031-0{number + 1}-15"} | ({"source": source} if source else {})
        lines.append(json.dumps(record))
    (tmp_path / "facts.jsonl").write_text("\n".join(lines))
    assert run("stream", tmp_path / "facts.jsonl", "--store", empty_store).exit_code == 0
    assert data(run("log", "--store", empty_store, "--json"))[1]["sources"] == {"gazette": 2, "wire": 1}
    assert "gazette (2) and 1 more" in run("log", "--store", empty_store).stdout
    assert data(run("show", 1, "--store", empty_store, "--json"))["sources"] == {"gazette": 2, "wire": 1}

    def chosen(*conditions: str, **more: str) -> list[str]:
        options = [part for condition in conditions for part in ("--where", condition)]
        found = data(run("facts", *options, "--store", empty_store, "--json"))
        return [fact["subject"][-1] for fact in found]

    assert chosen("source=gazette") == ["0", "2"]
    assert chosen("source=gazette", "since=2031-02-01") == ["2"]
    assert chosen("source=") == ["3"]
    assert chosen("until=2031-02-15") == ["0", "1"]
    assert chosen("state=superseded") == []
    digest = data(run("facts", "--store", empty_store, "--json", "--where", "subject=Vienna 1"))[0]["digest"]
    assert run("retract", digest, "--store", empty_store).exit_code == 0
    assert chosen("state=retracted") == ["1"]
    assert chosen("source~GAZ", "state=live") == ["0", "2"]
    listed = data(run("facts", "--state", "all", "--store", empty_store, "--json"))
    assert [fact["state"] for fact in listed] == ["live"] * 3 + ["retracted"]
    table = run("facts", "--state", "all", "--store", empty_store).stdout.splitlines()
    assert table[0].split() == ["fact", "subject", "prompt", "target", "date", "source"]
    assert table[-1].split()[0] == "retracted"


def test_show_says_where_a_step_comes_from(run: Run, store: Path) -> None:
    run("branch", "trial", 1, "--store", store)
    for step in (0, 2, "trial", "head"):
        lines = run("show", step, "--store", store).stdout.splitlines()
        found = dict(line.split(None, 1) for line in lines[: lines.index("") if "" in lines else None])
        provenance = data(run("show", step, "--store", store, "--json"))["provenance"]
        assert found["made_by"] == f"lifelong-edit {provenance['code']}"
        assert found["base_fingerprint"] == provenance["fingerprint"]
        assert (found["hypernetwork"], found["settings_digest"]) == ("-", provenance["settings_digest"])
        assert found["seed"] == "0"
        assert f"torch {provenance['environment']['torch']}" in found["libraries"].split(", ")
        assert f"python {provenance['environment']['python']}" in found["environment"].split(", ")
        assert f"threads {provenance['environment']['threads']}" in found["environment"].split(", ")
