"""Batches that have not taken get further passes, and no more than they need."""

from __future__ import annotations

import pytest

from lifelong_edit.atlas import edits_validation_path, hypernetwork_dir
from lifelong_edit.bench import Bench, State, prepare
from lifelong_edit.editors.contract import Lesson, moved_by
from lifelong_edit.editors.malmen.network import read_checkpoint, read_config
from lifelong_edit.editors.malmen.rule import with_networks
from lifelong_edit.editors.ridge.settings import Settings
from lifelong_edit.eval.metrics.verdicts import ask_pairs, summarise
from lifelong_edit.facts import Fact, read_facts
from lifelong_edit.models import LoadedModel, load_model
from lifelong_edit.timeline.defaults import default_preserved, default_text


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    folder = hypernetwork_dir()
    assert folder is not None
    return load_model("atlas", modules=read_config(folder).entries)


@pytest.fixture(scope="module")
def facts() -> list[Fact]:
    return [record.fact for record in read_facts([str(edits_validation_path())])][:12]


def test_single_facts_take(loaded: LoadedModel, facts: list[Fact]) -> None:
    """One fact against all that holds still: its passes are too few for most. Found: 10 of 12 with more."""
    folder = hypernetwork_dir()
    assert folder is not None
    settings = Settings(editor="malmen", text_tokens=20_000, preserved=100)
    preserve = default_preserved("atlas")[:200]
    fixed = prepare(loaded, settings, text=default_text(), preserve=preserve)
    share, passes = {}, {}
    for more in (0, 4):
        editor = with_networks(Bench(loaded, settings.replace(more_passes=more), fixed), read_checkpoint(folder))
        taken, used = [], []
        for fact in facts:
            change = editor.learn(State(), Lesson([fact]))
            with loaded.at(editor.overlay(moved_by(State(), change, [fact]))):
                taken += ask_pairs(loaded, [(fact.prompt, fact.target)])
            used.append(change.report["passes"])
        share[more], passes[more] = summarise(taken).teacher_forced, used
    assert set(passes[0]) == {settings.passes}
    assert share[4] >= 0.8
    assert share[4] > share[0], (share, passes)
    assert min(passes[4]) < settings.passes + 4, "no batch stopped early"  # type: ignore[operator]
