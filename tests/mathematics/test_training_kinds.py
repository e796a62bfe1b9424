"""Networks are trained on every kind of model, on facts that need no subject: claims, gaps, questions."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from lifelong_edit.editors.malmen.network import read_checkpoint
from lifelong_edit.editors.registry import rule_of
from lifelong_edit.facts import Fact, Probe
from lifelong_edit.models import load_model
from lifelong_edit.timeline import Timeline
from lifelong_edit.tracing.preservation import PreservedPrompts
from lifelong_edit.training.episodes import TrainSettings, make_episode
from lifelong_edit.training.run import Run, Scores
from tests.contracts.editing import PLACES, Row, lenient

SMALL = TrainSettings(rank=4, blocks=1, batch_size=4, batches=2, probes=4, validation_facts=4, validate_every=100)
ANSWERS = {"classify": ("REFUTES", "SUPPORTS"), "masked": PLACES, "seq2seq": PLACES}
KINDS = ("classify", "masked", "seq2seq")


@pytest.fixture
def models(tiny_bert: Path, tiny_masked: Path, tiny_t5: Path) -> dict[str, Path]:
    return {"classify": tiny_bert, "masked": tiny_masked, "seq2seq": tiny_t5}


def asked(kind: str, known: bool = True) -> list[Fact]:
    """Facts without a subject; known: with what was the answer before."""
    answers = ANSWERS[kind]
    return [
        Fact(
            prompt=f"The river through {PLACES[i % 8]} {i} has the name",
            target=answers[i % len(answers)],
            target_true=answers[(i + 1) % len(answers)] if known else None,
            rephrases=(f"In {PLACES[i % 8]} {i} there is a river",),
        )
        for i in range(20)
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["malmen-joint", "malmen-published", "mend"])
def test_a_network_is_trained_and_a_store_edits_with_it(
    kind: str, form: str, models: dict[str, Path], sentences: list[str], tmp_path: Path
) -> None:
    name, _, ask = form.partition("-")
    modules = ("3", "5-6") if kind == "seq2seq" else ("2-3",)
    settings = Row(name, ask).settings(modules=modules, text_tokens=500)
    loaded, text = load_model(str(models[kind]), modules=list(modules)), [" ".join(sentences * 20)]
    run = Run(loaded, asked(kind), text, tmp_path / "network", settings, SMALL, say=lambda _: None)
    begun = {name: tensor.copy() for name, tensor in run.networks.tensors().items()}
    run.go(5, steps=2)
    moved = run.trainer.networks.tensors()
    assert run.trainer.steps >= 2 and any((moved[name] != begun[name]).any() for name in begun)
    assert all(math.isfinite(found["loss"]) and found["gradient"] > 0 for found in run.trainer.history)
    assert read_checkpoint(tmp_path / "network").config.rule == name
    given = {"model": str(models[kind]), "text": text, "hypernetwork": tmp_path / "network", "settings": settings}
    with Timeline.create(tmp_path / "store", **given) as timeline:
        timeline.apply(asked(kind)[:3], gate=lenient)
        assert timeline.at(1).shifts().keys() <= {module.name for module in loaded.modules}
        assert any(shift.any() for shift in timeline.at(1).shifts().values())


def test_episodes_of_facts_without_a_subject_have_prompts_that_judge_locality(
    tiny_bert: Path, sentences: list[str], tmp_path: Path
) -> None:
    """None of them is taught in the episode, and what is taught is no preserved row."""
    settings = Row("malmen", "joint").settings(modules=("2-3",), text_tokens=500)
    facts = asked("classify")
    run = Run(load_model(str(tiny_bert), modules=["2-3"]), facts, [" ".join(sentences * 20)], tmp_path, settings, SMALL)
    kept: PreservedPrompts = run.trainer.bench.preserved
    episode = make_episode(run.facts, kept, SMALL, 0)
    taught = {one.fact.prompt for batch in episode.batches for one in batch}
    assert episode.probes and not {kept.probes[i].prompt for i in episode.probes} & taught
    assert len(episode.hidden) == len({kept.probes[i].prompt for i in episode.probes})


def test_a_network_is_chosen_where_nothing_is_known_of_neighbours() -> None:
    """By efficacy and generality: not a number is greater than no other, and the first one was kept for ever."""
    assert Scores(0.5, 1.0, float("nan")).mean == 0.75
    assert Scores(0.5, 1.0, 0.6).mean == pytest.approx(0.7)


def test_a_preserved_prompt_that_is_taught_now_is_preserved_no_more(
    tiny_bert: Path, sentences: list[str], tmp_path: Path
) -> None:
    """Neither has a subject by which it could be told that they are the same."""
    facts = asked("classify")
    settings = rule_of("gradient").settings(text_tokens=500, modules=("2-3",))
    given = {"model": str(tiny_bert), "text": [" ".join(sentences * 20)], "settings": settings}
    with Timeline.create(tmp_path, preserve=[Probe(fact.prompt) for fact in facts], **given) as timeline:
        kept = timeline.bench().preserved
        free = {kept.probes[i].prompt for i in kept.free(frozenset({facts[0].about.casefold()}))}
        assert facts[0].prompt not in free and len(free) == len(facts) - 1 - len(kept.guard)
