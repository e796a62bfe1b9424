"""Episodes that live as a store does: many batches, and all facts solved for again in between."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from lifelong_edit.atlas import edits_train_path
from lifelong_edit.bench import Bench, State
from lifelong_edit.editors.contract import Change
from lifelong_edit.editors.ridge.editor import RidgeEditor
from lifelong_edit.editors.ridge.settings import Settings
from lifelong_edit.facts import Fact, read_facts
from lifelong_edit.models import LoadedModel, load_model
from lifelong_edit.timeline.defaults import default_text
from lifelong_edit.tracing.preservation import PreservedPrompts
from lifelong_edit.training.episodes import Episode, Trainer, TrainSettings, make_episode
from lifelong_edit.training.run import Run
from tests.mathematics.conftest import whole_of

SOLVE = Settings(
    preserved=10,
    rehearse=2,
    phrasings=1,
    text_tokens=2000,
    passes=1,
    reconsolidation_passes=2,
    reconsolidation_preserved=20,
)
SMALL = TrainSettings(rank=8, batch_size=3, batches=3, probes=8, validation_facts=6, validate_every=100)


@pytest.fixture(scope="module")
def atlas() -> LoadedModel:
    return load_model("atlas")


@pytest.fixture(scope="module")
def facts() -> list[Fact]:
    return [record.fact for record in read_facts([str(edits_train_path())])][:80]


def trainer_of(atlas: LoadedModel, facts: list[Fact], out: Path, **changes: object) -> tuple[Trainer, list[Fact]]:
    run = Run(atlas, facts, default_text(), out, SOLVE, msgspec.structs.replace(SMALL, **changes), lambda _: None)
    return run.trainer, run.facts


def lived(trainer: Trainer, facts: Sequence[Fact], batches: int) -> tuple[State, Episode]:
    """The state after some batches of the first episode."""
    episode = make_episode(facts, trainer.bench.preserved, trainer.train, 0)
    state = State(digest="lived")
    for batch in episode.batches[:batches]:
        trainer.run_batch(state, batch, [], episode)
    return state, episode


def without(bench: Bench, subjects: frozenset[str]) -> Bench:
    """A bench whose preserved prompts never had those about some subjects."""
    all_of = bench.preserved
    kept = [i for i, p in enumerate(all_of.probes) if (p.subject or "").casefold() not in subjects]
    found = copy(bench)
    found.preserved = PreservedPrompts(
        [all_of.probes[i] for i in kept],
        [all_of.prompts[i] for i in kept],
        [all_of.subjects[i] for i in kept],
        [all_of.answers[i] for i in kept],
        [all_of.keys[i] for i in kept],
        all_of.directions[kept],
        frozenset(kept.index(i) for i in all_of.guard if i in kept),
    )
    return found


def test_a_trajectory_goes_on_from_what_reconsolidating_leads_to(
    atlas: LoadedModel, facts: list[Fact], tmp_path: Path
) -> None:
    """ΔW and the keys of all live facts, bit for bit; the episode's probes have no part in it."""
    trainer, own = trainer_of(atlas, facts, tmp_path)
    state, episode = lived(trainer, own, 2)
    assert episode.hidden
    before, keys = {n: s.clone() for n, s in state.shifts.items()}, dict(state.keys)
    trainer.reconsolidate(state, episode)
    live = list(state.live.values())
    assert len(live) == 6
    targets = trainer.editor.targets
    direct = RidgeEditor(without(trainer.bench, episode.hidden), targets).relearn(live)
    careless = whole_of(RidgeEditor(trainer.bench, targets).relearn(live))
    for name, shift in whole_of(direct).items():
        assert torch.equal(state.shifts[name], shift)
        assert not torch.equal(state.shifts[name], before[name])
        assert not torch.equal(state.shifts[name], careless[name])  # probes among the rows would be seen here
    assert set(state.keys) == set(state.live) == set(keys)
    last = trainer.bench.names[-1]
    for digest, found in direct.keys().items():
        np.testing.assert_array_equal(state.keys[digest].rows[last], found.rows[last])
        assert (found.rows[last] != keys[digest].rows[last]).any()


def test_episodes_of_many_batches(
    atlas: LoadedModel, facts: list[Fact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reconsolidated after every fourth: all facts so far, and every pass of a batch still moves the network."""
    seen: list[int] = []

    usual = RidgeEditor.relearn

    def counted(self: RidgeEditor, facts: Sequence[Fact]) -> Change:
        seen.append(len(facts))
        return usual(self, facts)

    monkeypatch.setattr(RidgeEditor, "relearn", counted)
    trainer, own = trainer_of(atlas, facts, tmp_path, batch_size=1, batches=10, reconsolidate_every=4)
    start = {n: t.clone() for n, t in trainer.networks.state_dict().items()}
    trainer.run_episode(own)
    assert seen == [4, 8]
    assert (trainer.steps, trainer.episode) == (10, 1)
    assert all(np.isfinite(h["loss"]) for h in trainer.history)
    assert any(not torch.equal(t, start[n]) for n, t in trainer.networks.state_dict().items())
    seen.clear()
    plain, own = trainer_of(atlas, facts, tmp_path / "plain", batch_size=1, batches=10)
    plain.run_episode(own)
    assert not seen
    assert plain.history[3]["loss"] == trainer.history[3]["loss"]
    assert plain.history[4]["loss"] != trainer.history[4]["loss"]
