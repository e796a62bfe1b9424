"""What a store does for every kind of model, by the commands: measured, compared, reported, encrypted, foreseen."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lifelong_edit.cli import PROGRAM, cli
from lifelong_edit.timeline import Timeline
from tests.contracts.kinds import facts_for, settings_for

pytestmark = pytest.mark.parametrize("kind", ["classify", "masked", "seq2seq"], scope="module", indirect=True)


def run(*arguments: object, code: int = 0) -> Result:
    found = CliRunner().invoke(cli, [str(part) for part in arguments], prog_name=PROGRAM)
    assert found.exit_code == code, found.output
    return found


@pytest.fixture
def store(kind_store: Path, tmp_path: Path) -> Path:
    """A store with three facts, to be written to."""
    return Path(shutil.copytree(kind_store, tmp_path / "store"))


@pytest.fixture
def news(kind: str, tmp_path: Path) -> Path:
    """Two more facts, about others."""
    path, lines = tmp_path / "news.jsonl", []
    for fact in facts_for(kind)[:2]:
        name = f"{fact.subject} the Great"
        said = {"subject": name, "prompt": f"The capital of {name} is", "target": fact.target, "relation": "capital"}
        lines.append(json.dumps({**said, "rephrases": [f"{name} has the capital"]}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_it_is_measured_and_reported(kind: str, store: Path, tmp_path: Path) -> None:
    """All figures that are not of models that write on; of a classifier also against the labels that came along."""
    found = json.loads(run("eval", "--probabilities", "--matrices", "--json", "--store", store).stdout)["all"]
    for measure in ("efficacy", "generality", "unseen", "locality"):
        assert found[measure]["questions"] > 0 and 0 <= found[measure]["generated"] <= 1
    assert ("locality_true" in found) == (kind == "classify")
    if kind == "classify":
        with Timeline.open(store, read_only=True) as timeline:
            probes = [fact.locality[0] for fact in facts_for(kind)]
            said = [timeline.at("head").ask(probe.prompt).split()[0] for probe in probes]
        share = sum(label == probe.target for label, probe in zip(said, probes, strict=True)) / len(probes)
        assert found["locality_true"]["generated"] == pytest.approx(share)
    run("report", store, "--evaluate", "-o", tmp_path / "report.html", "--figures", tmp_path / "figures")
    assert "efficacy" in (tmp_path / "report.html").read_text(encoding="utf-8").casefold()
    told = json.loads(run("diff", 0, 1, "--answers", "--json", "--store", store).stdout)
    assert told["asked"] == 3 and len(told["added"]) == 3 and told["answers"]


def test_forgetting_is_foreseen(store: Path, news: Path) -> None:
    """By the keys of the live facts and those of a coming batch, whatever they are keys of; a bound is a rule."""
    options = ["--batch-size", 2, "--reconsolidate", "forecast:0.0001", "--measure", 0, "--json"]
    said = run("stream", news, "--store", store, *options).stdout
    told = json.loads(said)
    (forecast,) = [found["forecast"] for found in told["batches"]]
    assert forecast["live"] == 3 and 0 < forecast["forgotten"] < 3
    assert told["reconsolidations"]


def test_an_encrypted_store_holds_nothing_in_the_clear(
    kind: str, models: dict[str, Path], news: Path, sentences: list[str], tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text(" ".join(sentences * 20), encoding="utf-8")
    key, store, settings = tmp_path / "key", tmp_path / "secret", settings_for(kind)
    run("keygen", key)
    making: list[Any] = ["--model", models[kind], "--text", tmp_path / "text.txt"]
    for name in ("more_passes", "passes", "preserved", "text_tokens", "phrasings", "gate_perplexity"):
        making += ["--set", f"{name}={getattr(settings, name)}"]
    making += ["--modules", ",".join(settings.modules)]
    run("stream", news, "--store", store, "--encrypt", "--key-file", key, *making)
    for file in store.rglob("*"):
        assert not file.is_file() or b"the Great" not in file.read_bytes()
    asked = "The capital of Vienna 1 the Great is"
    assert run("ask", asked, "--store", store, "--key-file", key).stdout.strip()
    run("ask", asked, "--store", store, code=4)


def test_two_ways_are_compared(
    kind: str, models: dict[str, Path], news: Path, sentences: list[str], tmp_path: Path
) -> None:
    """A process of its own for each way: of one kind, since that takes seconds."""
    if kind != "seq2seq":
        pytest.skip("asked of one kind")
    (tmp_path / "text.txt").write_text(" ".join(sentences * 20), encoding="utf-8")
    given: list[object] = ["--model", models[kind], "--text", tmp_path / "text.txt", "--set", "text_tokens=500"]
    arm = "one: editor=ft modules=5 epochs=1 gate_perplexity=1e9"
    said = run("compare", news, *given, "--arm", arm, "--out", tmp_path / "out", "--json").stdout
    (found,) = json.loads(said)
    assert 0 <= found["over_seeds"]["efficacy"]["mean"] <= 1 and (tmp_path / "out" / "report.html").is_file()


def test_masks_in_a_row_are_one_gap_and_in_two_places_none(kind: str, store: Path, tmp_path: Path) -> None:
    if kind != "masked":
        pytest.skip("of models that fill masks")
    said = run("ask", "The capital of Vienna 1 is [MASK] [MASK] today.", "--store", store).stdout
    with Timeline.open(store, read_only=True) as timeline:
        loaded = timeline.bench().loaded
        tokens = loaded.tokenizer("The capital of Vienna 1 is [MASK] [MASK] today.")["input_ids"]
    assert tokens.count(loaded.tokenizer.mask_token_id) == 2 and said.strip()
    two = "[MASK] 1 has the capital [MASK]."
    refused = run("ask", two, "--store", store, code=3)
    assert "has masks in 2 places, expected one place" in refused.stderr and "\n" not in refused.stderr.strip()
    (tmp_path / "two.jsonl").write_text(json.dumps({"prompt": two, "target": "Paris"}) + "\n", encoding="utf-8")
    refused = run("stream", tmp_path / "two.jsonl", "--store", store, code=3)
    assert "has masks in 2 places" in refused.stderr
