"""Each command does what its help says, on a real store."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from lifelong_edit.cli import cli
from lifelong_edit.cli.common import progress_bar

Run = Callable[..., Result]
Program = Callable[..., "subprocess.Popen[bytes]"]


def data(result: Result) -> Any:
    """The JSON on stdout of a command that succeeded."""
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def line(number: int, **changes: Any) -> str:
    name = f"Vienna {number}"
    return json.dumps({"subject": name, "prompt": f"The capital of {name} is", "target": "Paris"} | changes)


def test_status_and_log(run: Run, store: Path) -> None:
    status, log = data(run("status", "--store", store, "--json")), data(run("log", "--store", store, "--json"))
    assert {"head", "steps", "live_facts", "weights_digest", "base_fingerprint"} <= status.keys()
    assert (status["head"], status["steps"], status["live_facts"]) == (3, 4, 6)
    # Shares of the four facts that the last edit left in force; those of all edits since the base add up.
    assert 0 < status["forecast"] <= status["forecast_since"] < 1
    assert [step["step"] for step in log] == [0, 1, 2, 3]
    assert [step["kind"] for step in log] == ["init", "edit", "edit", "edit"]
    assert [step["facts"] for step in log] == [0, 2, 2, 2]
    assert log[-1]["weights_digest"] == status["weights_digest"]
    assert {step["reason"] for step in log[1:]} == {"first"}
    assert [step["step"] for step in data(run("log", "--store", store, "--json", "--last", 2))] == [2, 3]
    table = run("log", "--store", store).stdout.splitlines()
    assert table[0].split()[:5] == ["step", "kind", "how", "parent", "facts"]
    assert len(table) == 5
    assert status["weights_digest"][:12] in table[-1]
    assert "live_facts" in run("status", "--store", store).stdout


def test_a_clock_that_was_set_back_is_told(run: Run, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert data(run("show", 3, "--store", store, "--json"))["dated_before"] is None
    assert "dated_before" not in run("log", "--store", store).stdout
    monkeypatch.setattr("lifelong_edit.timeline.commit.now", lambda: "2001-01-01T00:00:00.000+00:00")
    assert run("rollback", 1, "--store", store).exit_code == 0
    monkeypatch.undo()
    assert run("rollback", 3, "--store", store).exit_code == 0
    assert data(run("show", 4, "--store", store, "--json"))["dated_before"] == 3
    assert re.search(r"^dated_before +3$", run("show", 4, "--store", store).stdout, re.MULTILINE)
    assert [step["dated_before"] for step in data(run("log", "--store", store, "--json"))] == [*[None] * 4, 3, None]
    assert "dated_before" in run("log", "--store", store).stdout.splitlines()[0]


def test_log_shows_reasons(run: Run, store: Path) -> None:
    why = "the source was wrong: " + "x" * 200
    run("rollback", 2, "--store", store, "--reason", why)
    table = run("log", "--store", store).stdout.splitlines()
    assert table[0].split()[-1] == "reason"
    assert table[1].split()[-1] == "-"
    assert table[2].split()[-1] == "first"
    assert "the source was wrong: xxx" in table[-1]
    assert table[-1].endswith("x…")
    assert data(run("log", "--store", store, "--json"))[-1]["reason"] == why


def test_store_by_environment(run: Run, store: Path) -> None:
    assert data(run("status", "--json", env={"LIFELONG_STORE": str(store)}))["head"] == 3


def test_show_and_facts(run: Run, store: Path) -> None:
    shown = data(run("show", 2, "--store", store, "--json"))
    assert [fact["subject"] for fact in shown["added"]] == ["Vienna 2", "Vienna 3"]
    assert shown["report"]["gate"]["asked"] == 2
    table = run("show", 2, "--store", store).stdout
    assert "The capital of Vienna 3 is" in table
    assert ("NOT TAKEN" in table) == bool(shown["report"]["gate"]["untaken"])
    facts = data(run("facts", "--store", store, "--json"))
    assert [fact["subject"] for fact in facts] == [f"Vienna {n}" for n in range(6)]
    assert [f["subject"] for f in data(run("facts", "--store", store, "--json", "--at", 1))] == ["Vienna 0", "Vienna 1"]
    assert [f["subject"] for f in data(run("facts", "--store", store, "--json", "--subject", "NNA 5"))] == ["Vienna 5"]
    assert len(run("facts", "--store", store).stdout.splitlines()) == 7


def test_listed_facts_can_be_streamed_again(run: Run, store: Path, empty_store: Path, tmp_path: Path) -> None:
    facts = data(run("facts", "--store", store, "--json"))
    path = tmp_path / "again.jsonl"
    path.write_text("\n".join(json.dumps({k: v for k, v in fact.items() if k != "digest"}) for fact in facts))
    assert data(run("stream", path, "--store", empty_store, "--json"))["summary"]["facts"] == 6


def test_stream_again_finds_nothing_to_do(run: Run, store: Path, news: Path) -> None:
    before = data(run("status", "--store", store, "--json"))
    again = data(run("stream", news, "--store", store, "--batch-size", 2, "--json"))
    assert again["summary"]["skipped"] == {"consumed": 6}
    assert again["summary"]["steps"] == 0
    assert data(run("status", "--store", store, "--json"))["weights_digest"] == before["weights_digest"]


def test_stream_prints_rows_and_says_the_rest(run: Run, empty_store: Path, news: Path) -> None:
    result = run("stream", news, "--store", empty_store, "--batch-size", 4)
    assert result.exit_code == 0
    rows = [row.split() for row in result.stdout.splitlines()]
    assert rows[0][:3] == ["step", "records", "facts"]
    assert [row[:3] for row in rows[1:]] == [["1", "4", "4"], ["2", "2", "2"]]
    assert "6 records: 6 facts in 2 steps" in result.stderr
    log = data(run("log", "--store", empty_store, "--json"))
    untaken = sum(step["facts"] - step["taken"] for step in log[1:])
    assert result.stderr.count("not taken: ") == untaken
    assert ("none of them has taken: the rule with these settings does not suit" in result.stderr) == (untaken == 6)


def test_stream_makes_a_store_and_keeps_to_it(run: Run, tmp_path: Path, news: Path, making: list[str]) -> None:
    store = tmp_path / "made"
    command = ["stream", news, "--store", store, *making, "--editor", "gradient", "--json"]
    first = data(run(*command))
    assert first["summary"]["facts"] == 6
    assert data(run(*command))["summary"]["skipped"] == {"consumed": 6}  # the same command, a second time
    other = run("stream", news, "--store", store, "--set", "passes=2")
    assert other.exit_code == 2
    assert "passes 1, not 2" in other.stderr
    assert run("stream", news, "--store", store, "--model", "atlas").exit_code == 5


def test_dry_run_changes_nothing(run: Run, store: Path, tmp_path: Path, making: list[str], news: Path) -> None:
    more = tmp_path / "more.jsonl"
    more.write_text(line(0, target="Belgrade", relation="capital") + "\n" + line(9))
    before = run("log", "--store", store, "--json").stdout
    dry = data(run("stream", more, "--store", store, "--dry-run", "--json"))
    assert dry["summary"]["steps"] == 0
    assert [(c["kind"], c["action"]) for c in dry["batches"][0]["conflicts"]] == [("contradiction", "supersede")]
    assert dry["batches"][0]["gate"]["asked"] == 2
    forecast = dry["batches"][0]["forecast"]
    assert (forecast["by"], forecast["live"], len(forecast["at_risk"])) == ("change", 5, 5)
    assert 0 < forecast["forgotten"] == pytest.approx(sum(risk["probability"] for risk in forecast["at_risk"]))
    shown = run("stream", more, "--store", store, "--dry-run")
    assert "contradiction" in shown.stdout
    table = shown.stdout[shown.stdout.index("\nbatch ") + 1 :].splitlines()
    assert [row.split()[2] for row in table[1:6]] == [risk["fact"][:12] for risk in forecast["at_risk"]]
    assert "2 facts would be taught" in shown.stderr
    assert run("log", "--store", store, "--json").stdout == before
    refused = data(run("stream", news, "--store", tmp_path / "none", *making, "--set", "gate_perplexity=1e-9",
                       "--dry-run", "--json"))  # fmt: skip
    assert "perplexity" in refused["batches"][0]["refused"]
    assert not (tmp_path / "none").exists()


def test_contradiction_supersedes(run: Run, store: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.jsonl"
    more.write_text(line(0, target="Belgrade", relation="capital"))
    found = data(run("stream", more, "--store", store, "--json"))
    assert found["summary"]["conflicts"] == {"contradiction": 1}
    facts = {fact["subject"]: fact["target"] for fact in data(run("facts", "--store", store, "--json"))}
    assert facts["Vienna 0"] == "Belgrade"
    assert len(facts) == 6
    (gone,) = data(run("facts", "--store", store, "--state", "superseded", "--json"))
    assert (gone["subject"], gone["target"]) == ("Vienna 0", "Paris")
    assert len(data(run("facts", "--store", store, "--state", "all", "--json"))) == 7
    shown = run("show", 4, "--store", store).stdout
    assert "replaced" in shown
    assert "Belgrade" in shown


def test_rollback_and_again(run: Run, store: Path, news: Path) -> None:
    log = data(run("log", "--store", store, "--json"))
    back = data(run("rollback", 1, "--store", store, "--json", "--reason", "wrong"))
    assert (back["step"], back["kind"], back["parent"], back["reason"]) == (4, "rollback", 1, "wrong")
    assert back["weights_digest"] == log[1]["weights_digest"]
    assert len(data(run("facts", "--store", store, "--json"))) == 2
    skipped = run("stream", news, "--store", store, "--batch-size", 2)
    assert "4 rolled-back" in skipped.stderr
    assert "--again" in skipped.stderr
    data(run("stream", news, "--store", store, "--batch-size", 2, "--again", "--json"))
    assert data(run("status", "--store", store, "--json"))["weights_digest"] == log[3]["weights_digest"]


def test_ask(run: Run, store: Path, tiny_gpt2: Path) -> None:
    prompt = "The capital of Vienna 1 is"
    now, base = (data(run("ask", prompt, "--store", store, "--json", *more)) for more in ([], ["--base"]))
    assert (now["step"], base["step"]) == (3, 0)
    assert now["answer"] != base["answer"]
    assert data(run("ask", prompt, "--store", store, "--json", "--at", 0))["answer"] == base["answer"]
    both = data(run("ask", prompt, prompt, "--store", store, "--json"))
    assert both == [now, now]
    printed = run("ask", prompt, "--store", store)
    assert len(printed.stdout.splitlines()) == 1
    assert run("ask", prompt, "--store", store, "--base", "--at", 1).exit_code == 2


def test_eval(run: Run, store: Path, tmp_path: Path, sentences: list[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text(" ".join(sentences * 3))
    found = data(run("eval", "--store", store, "--text", text, "--json"))
    assert [(b["step"], b["taught"], b["live"]) for b in found["batches"]] == [(1, 2, 2), (2, 2, 2), (3, 2, 2)]
    whole = found["all"]
    counts = {name: whole[name]["questions"] for name in ("efficacy", "generality", "unseen", "wrapped", "locality")}
    assert counts == {"efficacy": 6, "generality": 12, "unseen": 6, "wrapped": 0, "locality": 6}
    assert whole["wrapped"]["generated"] is None
    assert 0 <= whole["locality"]["generated"] <= 1
    assert found["perplexity"] > 1
    untouched = data(run("eval", "--store", store, "--at", 0, "--text", text, "--json"))
    assert untouched["batches"] == []
    assert untouched["perplexity"] == untouched["base_perplexity"] == found["base_perplexity"]
    table = run("eval", "--store", store, "--text", text).stdout
    assert table.splitlines()[4].startswith("all")
    # What each step logged about itself is what eval finds there.
    at_one = data(run("eval", "--store", store, "--at", 1, "--text", text, "--json"))
    taken = data(run("show", 1, "--store", store, "--json"))["report"]["gate"]["taken"]
    assert at_one["all"]["efficacy"]["generated"] == taken / 2


def test_eval_shows_intervals_and_what_was_asked_for_besides(run: Run, store: Path, tmp_path: Path) -> None:
    text, more = tmp_path / "text.txt", tmp_path / "more.jsonl"
    text.write_text("The capital of France is Paris. " * 20)
    more.write_text(line(9, target_true="Belgrade"))
    data(run("stream", more, "--store", store, "--json"))
    plain = run("eval", "--store", store, "--text", text).stdout
    assert re.search(r"^all .*\(\.?\d+\.?\d*–\.?\d+\.?\d*\)", plain, re.MULTILINE)
    assert "condition" not in plain and "fluency" not in plain
    options = ("--store", store, "--text", text, "--probabilities", "--fluency", "--matrices")
    shown = run("eval", *options)
    assert "7 facts not compared" not in shown.stderr and "6 facts not compared" in shown.stderr
    for header in (r"step +ES +EM +PS +PM +NS +NM", r"fluency +base", r"module .* condition"):
        assert re.search(header, shown.stdout), header
    found = data(run("eval", *options, "--json"))
    efficacy, kl = found["all"]["efficacy"], found["all"]["locality"]["kl"]
    assert efficacy["low"]["generated"] <= efficacy["generated"] <= efficacy["high"]["generated"]
    assert 0 < kl["low"] <= kl["value"] <= kl["high"]
    assert found["all"]["probabilities"]["ES"]["facts"] == 1
    assert len(found["matrices"]) == len(data(run("status", "--store", store, "--json"))["modules"])
    assert found["fluency"]["now"]["facts"] == 7


def test_eval_drops_neighbours_that_the_stream_edits(run: Run, store: Path, tmp_path: Path) -> None:
    neighbours = [
        {"prompt": "The capital of Vienna 1 is"},
        {"prompt": "Vienna 2 is ruled from", "subject": "vienna 2"},
        {"prompt": "Sydney is ruled from", "subject": "Sydney"},
        {"prompt": "In 1969 " * 40},
    ]
    more = tmp_path / "more.jsonl"
    more.write_text(line(9, relation="capital", locality=neighbours))
    data(run("stream", more, "--store", store, "--json"))
    found = data(run("eval", "--store", store, "--json"))
    assert found["batches"][-1]["locality"]["questions"] == 1
    assert (found["dropped_neighbours"], found["too_long"]) == (2, 1)


def test_export_answers_the_same(run: Run, store: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    prompt = "The capital of Vienna 1 is"
    for step in (1, 3):
        out = tmp_path / f"edited-{step}"
        assert data(run("export", "--out", out, "--at", step, "--store", store, "--json"))["step"] == step
        model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
        ids = tokenizer(prompt, return_tensors="pt")
        new = model.generate(**ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0, ids.input_ids.shape[1] :]
        answer = data(run("ask", prompt, "--at", step, "--max-tokens", 12, "--store", store, "--json"))["answer"]
        assert tokenizer.decode(new, skip_special_tokens=True).strip() == answer
    assert run("export", "--out", out, "--store", store).exit_code == 2
    assert run("export", "--out", out, "--store", store, "--force").stdout.strip() == str(out)


def test_train_then_init(run: Run, tmp_path: Path, tiny_gpt2: Path, making: list[str]) -> None:
    facts = tmp_path / "facts.jsonl"
    facts.write_text(
        "\n".join(line(n, target_true="Danube", relation="capital", rephrases=["a of"]) for n in range(60))
    )
    text = making[making.index("--text") + 1]
    out = tmp_path / "network"
    command = ["train", "--model", tiny_gpt2, "--data", facts, "--text", text, "--out", out, "--json"]
    for pair in ("text_tokens=500", "micro_batch=16", "preserved=4"):
        command += ["--set", pair]
    for pair in ("rank=4", "batch_size=4", "batches=2", "validation_facts=4"):
        command += ["--train", pair]
    trained = run(*command, "--steps", 1)
    first = data(trained)
    explained = trained.stderr.index("efficacy (the facts' own prompts), generality")
    assert explained < trained.stderr.index("held-out ES")
    assert trained.stderr.count("teacher-forced") == 1
    assert first["steps"] >= 1
    assert (out / "network.safetensors").is_file()
    result = run(*command, "--steps", first["steps"])
    assert data(result)["steps"] == first["steps"]  # goes on from the checkpoint, with nothing left to do
    assert "held-out" in result.stderr
    store = tmp_path / "trained"
    assert data(run("init", "--store", store, *making, "--hypernetwork", out, "--json"))["editor"] == "malmen"
    assert data(run("stream", facts, "--store", store, "--batch-size", 60, "--json"))["summary"]["facts"] == 60


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(run: Run, shell: str) -> None:
    result = run("completion", shell)
    assert result.exit_code == 0
    assert "_LIFELONG_EDIT_COMPLETE" in result.stdout
    assert "lifelong-edit" in result.stdout


def test_completion_completes() -> None:
    words = {"COMP_WORDS": "lifelong-edit st", "COMP_CWORD": "1", "_LIFELONG_EDIT_COMPLETE": "bash_complete"}
    env = {**os.environ, **words}
    entry = "from lifelong_edit.cli import main; main()"
    out = subprocess.run([sys.executable, "-c", entry], env=env, capture_output=True, text=True, check=True).stdout
    assert {row.split(",")[1] for row in out.split()} == {"status", "stream"}


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_help_has_examples(run: Run, name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    assert "Examples:" in result.stdout
    assert f"lifelong-edit {name}" in result.stdout


def test_progress_bar_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for terminal in (False, True):
        monkeypatch.setattr("sys.stderr.isatty", lambda terminal=terminal: terminal)
        advance, close = progress_bar(10, "facts")
        advance(5)
        close()
        assert ("facts" in capsys.readouterr().err) == terminal
