"""A training run: resumable, chosen on held-out facts, and with its origin written beside it."""

from __future__ import annotations

import shutil
import signal
import textwrap
from collections.abc import Callable
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
from lifelong_edit.training.run import Run, Scores
from lifelong_edit.training.scorers import scorer_for
from tests.warm import Running

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


@pytest.fixture(scope="module")
def trained(loaded: LoadedModel, facts: list[Fact], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that went two steps; its folder is only read."""
    run = make(loaded, facts, tmp_path_factory.mktemp("runs") / "trained")
    run.go(5, steps=2)
    return run


def test_a_run_that_was_stopped_goes_on_to_the_same_network(
    loaded: LoadedModel, facts: list[Fact], trained: Run, tmp_path: Path
) -> None:
    fresh = make(loaded, facts, tmp_path / "whole")
    begun = {name: tensor.copy() for name, tensor in fresh.networks.tensors().items()}
    fresh.go(5, steps=4)
    shutil.copytree(trained.out, tmp_path / "halves")
    later = make(loaded, facts, tmp_path / "halves")
    assert later.trainer.steps == 2
    later.go(5, steps=4)
    whole, halves = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "halves"))
    for name, tensor in whole.items():
        if not name.startswith("best"):  # the stopped run validated once more, in the middle
            np.testing.assert_array_equal(tensor, halves[name], err_msg=name)
    moved = [n for n in whole if n.startswith("network/") and n.endswith("log_step")]
    assert any((whole[n] != begun[n.removeprefix("network/")]).any() for n in moved)


def test_a_killed_run_goes_on(
    loaded: LoadedModel, facts: list[Fact], program: Callable[..., Running], tmp_path: Path
) -> None:
    out = tmp_path / "network"
    code = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parents[2])!r})
        from pathlib import Path
        from tests.mathematics.test_training_run import make, load_model, read_facts, edits_train_path
        facts = [r.fact for r in read_facts([str(edits_train_path())])][:80]
        run = make(load_model("atlas"), facts, Path({str(out)!r}))
        run.say = lambda line: print(line, flush=True)
        run.go(5, steps=10_000)
    """
    with program(before=textwrap.dedent(code)) as process:
        for line in process.stdout:
            if b"loss" in line and int(line.split()[1]) >= 4:
                process.kill()
                break
        assert process.wait() == -signal.SIGKILL
    run = make(loaded, facts, out)
    assert run.trainer.steps >= 2
    run.go(5, steps=run.trainer.steps + 2)
    assert read_checkpoint(out).config.provenance["steps"] == run.trainer.steps


def test_the_best_network_is_kept(trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a later validation finds that scores less."""
    assert trained.best is not None
    kept = {name: array.copy() for name, array in trained.best[1].items()}
    monkeypatch.setattr("lifelong_edit.training.run.validate", lambda *_: Scores(0.0, 0.0, 0.0))
    monkeypatch.setattr(trained.trainer, "average", {n: t + 1 for n, t in trained.trainer.average.items()})
    trained._validate()
    for name, array in kept.items():
        np.testing.assert_array_equal(array, trained.best[1][name], err_msg=name)


def test_the_result_says_where_it_comes_from(loaded: LoadedModel, trained: Run) -> None:
    config = read_checkpoint(trained.out).config
    assert config.provenance["model_fingerprint"] == loaded.fingerprint
    assert config.provenance["model"] == "atlas"
    assert config.provenance["data_digest"] == trained.data_digest
    assert config.provenance["train"] == msgspec.to_builtins(SMALL)
    assert set(config.provenance["versions"]) >= {"torch", "transformers", "lifelong-edit"}  # type: ignore[call-overload]
    assert msgspec.convert(config.settings, Settings) == SOLVE.replace(editor="malmen")


def test_a_scorer_of_conflicts_is_kept_with_the_network(
    loaded: LoadedModel, facts: list[Fact], trained: Run, tmp_path: Path
) -> None:
    """Fitted on the facts that it trains on and on no others, around the centre of this run."""
    wanted = scorer_for(loaded, trained.fixed.conflict_mean, trained.facts, SOLVE.micro_batch, SOLVE.seed)
    assert read_scorer(trained.out / "conflicts.json") == wanted != default_scorer()
    assert scorer_of(trained.out) == wanted
    assert wanted is not None
    assert wanted.provenance["fingerprint"] == loaded.fingerprint
    assert trained.loaded is loaded
    bare = [msgspec.structs.replace(fact, relation=None) for fact in facts]
    again = make(loaded, bare, tmp_path / "bare")
    again.go(5, steps=1)
    assert not (tmp_path / "bare" / "conflicts.json").exists()
    assert scorer_of(tmp_path / "bare") == default_scorer()


def test_held_out_facts_share_no_subject_with_training(trained: Run) -> None:
    seen = {f.subject.casefold() for f in trained.facts}
    held = {f.subject.casefold() for f in (*trained.held.taught, *trained.held.neighbours)}
    assert held and not seen & held
    for fact, asked in zip(trained.held.taught, trained.held.asked, strict=True):
        assert asked not in fact.rephrases


def test_what_cannot_be_trained_is_refused(
    loaded: LoadedModel, facts: list[Fact], trained: Run, tmp_path: Path
) -> None:
    with pytest.raises(BadInputError, match="expected at least 12 and 4"):
        make(loaded, facts[:6], tmp_path / "few")
    shutil.copytree(trained.out, tmp_path / "other")
    with pytest.raises(UsageError, match="belongs to another run"):
        make(loaded, facts, tmp_path / "other", seed=1)
    fewer = load_model("atlas", modules=["3-4"])
    with pytest.raises(ModelMismatchError, match="trained for modules"):
        read_checkpoint(tmp_path / "other").check(fewer.modules)


def test_a_run_can_begin_with_a_trained_network(
    loaded: LoadedModel, facts: list[Fact], trained: Run, tmp_path: Path
) -> None:
    first = trained.out
    later = Run(loaded, facts, default_text(), tmp_path / "second", SOLVE, SMALL, lambda _: None, first)
    for name, tensor in read_checkpoint(first).tensors().items():
        np.testing.assert_array_equal(tensor, later.networks.tensors()[name], err_msg=name)
    assert later.identity != trained.identity
    wider = msgspec.structs.replace(SMALL, rank=9)
    with pytest.raises(UsageError, match="expected"):
        Run(loaded, facts, default_text(), tmp_path / "third", SOLVE, wider, lambda _: None, first)
