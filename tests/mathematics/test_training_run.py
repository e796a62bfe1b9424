"""A training run: resumable, chosen on held-out facts, and with its origin written beside it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file

from lifelong_edit.atlas import edits_train_path
from lifelong_edit.editors.malmen.network import read_checkpoint
from lifelong_edit.editors.ridge.settings import Settings
from lifelong_edit.errors import BadInputError, ModelMismatchError, UsageError
from lifelong_edit.facts import Fact, read_facts
from lifelong_edit.models import LoadedModel, load_model
from lifelong_edit.policies.scoring import read_scorer
from lifelong_edit.timeline.defaults import default_scorer, default_text, scorer_of
from lifelong_edit.training.episodes import TrainSettings
from lifelong_edit.training.run import Run
from lifelong_edit.training.scorers import scorer_for

SOLVE = Settings(preserved=10, rehearse=3, phrasings=1, text_tokens=2000, passes=1)
SMALL = TrainSettings(
    rank=8, batch_size=6, batches=2, probes=8, validation_share=0.3, validation_facts=6, validate_every=100
)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model("atlas")


@pytest.fixture(scope="module")
def facts() -> list[Fact]:
    return [record.fact for record in read_facts([str(edits_train_path())])][:80]


def make(loaded: LoadedModel, facts: list[Fact], out: Path, **changes: object) -> Run:
    train = msgspec.structs.replace(SMALL, **changes)
    return Run(loaded, facts, default_text(), out, SOLVE, train, say=lambda _: None)


def test_a_run_that_was_stopped_goes_on_to_the_same_network(
    loaded: LoadedModel, facts: list[Fact], tmp_path: Path
) -> None:
    make(loaded, facts, tmp_path / "whole").go(5, steps=4)
    make(loaded, facts, tmp_path / "halves").go(5, steps=2)
    later = make(loaded, facts, tmp_path / "halves")
    assert later.trainer.steps == 2
    later.go(5, steps=4)
    whole, halves = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "halves"))
    for name, tensor in whole.items():
        if not name.startswith("best"):  # the stopped run validated once more, in the middle
            np.testing.assert_array_equal(tensor, halves[name], err_msg=name)
    moved = [n for n in whole if n.startswith("network/") and n.endswith("log_step")]
    fresh = make(loaded, facts, tmp_path / "fresh").networks.tensors()
    assert any((whole[n] != fresh[n.removeprefix("network/")]).any() for n in moved)


def test_a_killed_run_goes_on(tmp_path: Path, facts: list[Fact]) -> None:
    out = tmp_path / "network"
    code = f"""
        from pathlib import Path
        from tests_of_training import make, load_model, read_facts, edits_train_path
        facts = [r.fact for r in read_facts([str(edits_train_path())])][:80]
        run = make(load_model("atlas"), facts, Path({str(out)!r}))
        run.say = lambda line: print(line, flush=True)
        run.go(5, steps=10_000)
    """
    (tmp_path / "tests_of_training.py").write_text(Path(__file__).read_text())
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "loss" in line and int(line.split()[1]) >= 4:
                process.send_signal(signal.SIGKILL)
                break
    run = make(load_model("atlas"), facts, out)
    assert run.trainer.steps >= 2
    run.go(5, steps=run.trainer.steps + 2)
    assert read_checkpoint(out).config.provenance["steps"] == run.trainer.steps


def test_the_result_says_where_it_comes_from(loaded: LoadedModel, facts: list[Fact], tmp_path: Path) -> None:
    run = make(loaded, facts, tmp_path)
    run.go(5, steps=2)
    config = read_checkpoint(tmp_path).config
    assert config.provenance["model_fingerprint"] == loaded.fingerprint
    assert config.provenance["model"] == "atlas"
    assert config.provenance["data_digest"] == run.data_digest
    assert config.provenance["train"] == msgspec.to_builtins(SMALL)
    assert set(config.provenance["versions"]) >= {"torch", "transformers", "lifelong-edit"}  # type: ignore[call-overload]
    assert msgspec.convert(config.settings, Settings) == SOLVE.replace(editor="malmen")


def test_a_scorer_of_conflicts_is_kept_with_the_network(loaded: LoadedModel, facts: list[Fact], tmp_path: Path) -> None:
    """Fitted on the facts that it trains on and on no others, around the centre of this run."""
    run = make(loaded, facts, tmp_path)
    run.go(5, steps=1)
    wanted = scorer_for(loaded, run.fixed.conflict_mean, run.facts, SOLVE.micro_batch, SOLVE.seed)
    assert read_scorer(tmp_path / "conflicts.json") == wanted != default_scorer()
    assert scorer_of(tmp_path) == wanted
    assert wanted is not None
    assert wanted.provenance["fingerprint"] == loaded.fingerprint
    assert run.loaded is loaded
    bare = [msgspec.structs.replace(fact, relation=None) for fact in facts]
    again = make(loaded, bare, tmp_path / "bare")
    again.go(5, steps=1)
    assert not (tmp_path / "bare" / "conflicts.json").exists()
    assert scorer_of(tmp_path / "bare") == default_scorer()


def test_held_out_facts_share_no_subject_with_training(loaded: LoadedModel, facts: list[Fact], tmp_path: Path) -> None:
    run = make(loaded, facts, tmp_path)
    trained = {f.subject.casefold() for f in run.facts}
    held = {f.subject.casefold() for f in (*run.held.taught, *run.held.neighbours)}
    assert held and not trained & held
    for fact, asked in zip(run.held.taught, run.held.asked, strict=True):
        assert asked not in fact.rephrases


def test_what_cannot_be_trained_is_refused(loaded: LoadedModel, facts: list[Fact], tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="expected at least 12 and 4"):
        make(loaded, facts[:6], tmp_path / "few")
    make(loaded, facts, tmp_path / "other").go(5, steps=2)
    with pytest.raises(UsageError, match="belongs to another run"):
        make(loaded, facts, tmp_path / "other", seed=1)
    fewer = load_model("atlas", modules=["3-4"])
    with pytest.raises(ModelMismatchError, match="trained for modules"):
        read_checkpoint(tmp_path / "other").check(fewer.modules)


def test_a_run_can_begin_with_a_trained_network(loaded: LoadedModel, facts: list[Fact], tmp_path: Path) -> None:
    make(loaded, facts, tmp_path / "first").go(5, steps=2)
    trained = read_checkpoint(tmp_path / "first")
    later = Run(loaded, facts, default_text(), tmp_path / "second", SOLVE, SMALL, lambda _: None, tmp_path / "first")
    for name, tensor in trained.tensors().items():
        np.testing.assert_array_equal(tensor, later.networks.tensors()[name], err_msg=name)
    fresh = make(loaded, facts, tmp_path / "fresh")
    assert later.identity != fresh.identity
    wider = msgspec.structs.replace(SMALL, rank=9)
    with pytest.raises(UsageError, match="expected"):
        Run(loaded, facts, default_text(), tmp_path / "third", SOLVE, wider, lambda _: None, tmp_path / "first")
