"""The scorer of conflicts on the command line: from the folder of `train` into a store, and what streams show of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from click.testing import Result

from lifelong_edit.bench import Fixed
from lifelong_edit.policies.scoring import CONFLICTS, read_scorer
from lifelong_edit.timeline import Timeline
from lifelong_edit.timeline.defaults import default_scorer

Run = Callable[..., Result]
ASKED = {"subject": "Vienna 2", "prompt": "Those who govern Vienna 2 sit in", "target": "Oslo"}


@pytest.fixture
def chosen(tmp_path: Path) -> Path:
    """A folder as `train --choose` leaves it: settings and a scorer that takes any two facts of a subject for one."""
    folder = tmp_path / "chosen"
    folder.mkdir()
    sure = msgspec.structs.replace(default_scorer(), coefficients=(0.0, 0.0), intercept=3.0)
    (folder / CONFLICTS).write_bytes(msgspec.json.encode(sure))
    (folder / "settings.json").write_text('{"settings": {"kappa": 0.5}}')
    return folder


def kinds(run: Run, store: Path, news: Path, asked: Path) -> list[tuple[str, str, float]]:
    """What meets what in a dry run, after the six facts of `news`."""
    assert run("stream", news, "--store", store).exit_code == 0
    (batch,) = json.loads(run("stream", asked, "--store", store, "--dry-run", "--json").stdout)["batches"]
    return [(c["kind"], c["action"], c["probability"]) for c in batch["conflicts"]]


def test_what_train_left_decides_in_the_store(
    run: Run, making: list[str], chosen: Path, news: Path, tmp_path: Path
) -> None:
    """Taken with the settings, by the folder or by the file in it; `--set conflict_probability=1` overrules it."""
    asked = tmp_path / "asked.jsonl"
    asked.write_text(json.dumps(ASKED) + "\n")
    any_cosine = ["--set", "conflict_cosine=-1"]
    for number, (given, kind) in enumerate(
        (
            (["--settings", chosen], "contradiction"),
            (["--settings", chosen / "settings.json"], "contradiction"),
            (["--settings", chosen, "--set", "conflict_probability=1"], "unrelated"),
        )
    ):
        store = tmp_path / f"store{number}"
        made = run("init", "--store", store, *making, *any_cosine, *given)
        assert made.exit_code == 0, made.output
        with Timeline.open(store, read_only=True) as timeline:
            scorer = Fixed.of(timeline.fixed()).scorer
            assert scorer is not None
            assert scorer.intercept == 3.0
        ((found, action, probability),) = kinds(run, store, news, asked)
        assert (found, action) == (kind, "supersede" if kind == "contradiction" else "keep")
        assert probability == pytest.approx(0.952574, abs=1e-6)


def test_a_scorer_that_cannot_be_read_is_refused(run: Run, making: list[str], chosen: Path, tmp_path: Path) -> None:
    (chosen / CONFLICTS).write_text('{"features": ["colour"]}')
    found = run("init", "--store", tmp_path / "s", *making, "--settings", chosen)
    assert (found.exit_code, found.stdout) == (3, "")
    (line,) = found.stderr.strip().splitlines()
    assert "holds no scorer of conflicts" in line
    assert not (tmp_path / "s").exists()
    none = run("init", "--store", tmp_path / "s", *making, "--set", "conflict_probability=0")
    assert none.exit_code == 2
    assert "conflict_probability is 0; it must be a number greater than zero" in none.stderr


def test_train_leaves_one_for_the_model(run: Run, making: list[str], tmp_path: Path) -> None:
    """Where nothing else is trained too; a store for the model takes it with the settings."""
    facts = tmp_path / "facts.jsonl"
    asked = {"river": ("The river of {} is", "{} lies on"), "capital": ("The capital of {} is", "{} is ruled from")}
    records = [
        {"subject": f"Kenya {i}", "relation": relation, "prompt": one.format(f"Kenya {i}"), "target": "London"}
        | {"rephrases": [other.format(f"Kenya {i}")]}
        for i in range(60)
        for relation, (one, other) in asked.items()
    ]
    facts.write_text("\n".join(map(json.dumps, records)))
    kept = [making[i : i + 2] for i in range(0, len(making), 2) if making[i] != "--preserve"]
    options = [part for pair in kept for part in pair]
    out = tmp_path / "out"
    quick = ["--choosing", "facts=4", "--choosing", "only=eta", "--train", "batch_size=4", "--modules", "2-3"]
    done = run("train", *options, "--data", facts, "--editor", "gradient", "--choose", 0, *quick, "--out", out)
    assert done.exit_code == 0, done.output
    assert f"wrote {out / CONFLICTS}" in done.stderr
    made = run("init", "--store", tmp_path / "store", *making, "--settings", out, "--modules", "2-3")
    assert made.exit_code == 0, made.output
    with Timeline.open(tmp_path / "store", read_only=True) as timeline:
        found = Fixed.of(timeline.fixed()).scorer
        assert found == read_scorer(out / CONFLICTS) != default_scorer()
        assert found is not None
        assert found.provenance["fingerprint"] == timeline.config.model.fingerprint


def test_a_dry_run_shows_what_meets_within_a_batch(run: Run, making: list[str], chosen: Path, tmp_path: Path) -> None:
    """What was met is in no store: it is an earlier record of the same file."""
    store, asked = tmp_path / "store", tmp_path / "asked.jsonl"
    made = run("init", "--store", store, *making, "--set", "conflict_cosine=-1", "--settings", chosen)
    assert made.exit_code == 0, made.output
    other = ASKED | {"prompt": "The government of Vienna 2 sits in"}
    asked.write_text(f"{json.dumps(ASKED)}\n{json.dumps(other)}\n")
    shown = run("stream", asked, "--store", store, "--dry-run")
    assert shown.exit_code == 0, shown.stderr
    (row,) = (row for row in shown.stdout.splitlines() if "The government of Vienna 2" in row)
    assert row.rstrip().endswith("Those who govern Vienna 2 sit in → Oslo")
