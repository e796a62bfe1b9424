"""atlas-t5: what it was made from, and that it answers what it was not asked in training."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from lifelong_edit.atlas import t5_dir
from lifelong_edit.atlas.answering import AnsweringRecipe, Pair, half_batches, padded, pair_batches
from lifelong_edit.atlas.questions import QUESTIONS, asked, asked_pairs
from lifelong_edit.atlas.world_tables import RELATIONS, world_facts
from lifelong_edit.facts import read_facts
from lifelong_edit.models import LoadedModel, load_model
from lifelong_edit.tasks import task_of

STREAM = Path(__file__).parents[2] / "facts" / "t5" / "questions.jsonl"


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model("atlas-t5")


def right(loaded: LoadedModel, pairs: list[tuple[str, str]]) -> float:
    """The share that is answered by generation, to the end."""
    task = task_of(loaded)
    said = task.answer(loaded, [question for question, _ in pairs], 16)
    verdicts = [task.judge(loaded, q, wanted, one) for (q, wanted), one in zip(pairs, said, strict=True)]
    return sum(verdict.right and verdict.ended for verdict in verdicts) / len(pairs)


def test_every_relation_has_questions_and_none_is_withheld_that_is_trained() -> None:
    assert set(QUESTIONS) == {relation.name for relation in RELATIONS}
    trained, withheld = asked_pairs(withheld=False), asked_pairs(withheld=True)
    assert not {text for _, text in trained} & {text for _, text in withheld}
    assert len(trained) + len(withheld) == 12 * len(world_facts()) == len({t for f in world_facts() for t in asked(f)})
    assert all(text.endswith("?") for fact in world_facts() for text in asked(fact)[8:])


def test_batches_are_all_pairs_and_halves_of_prose() -> None:
    recipe = AnsweringRecipe(pairs=2, windows=1, context=8)
    pairs = [Pair((i, 1), (i, 1)) for i in range(2, 66)]
    batches = pair_batches(pairs, recipe)
    seen = [pair for _ in range(32) for pair in next(batches)]
    assert sorted(seen, key=lambda pair: pair.read) == pairs
    (half,) = next(half_batches(list(range(10, 30)), 1, recipe))
    assert half.read[-1] == 1 and half.read[-2] + 1 == half.write[0] and len(half.read) == 4
    ids, mask, labels = padded([Pair((5, 6, 1), (7,)), Pair((5, 1), (7, 1))], 0)
    assert ids.tolist() == [[5, 6, 1], [5, 1, 0]] and mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert labels.tolist() == [[7, -100], [7, 1]]


def test_the_card_holds_what_is_promised() -> None:
    card = json.loads((t5_dir() / "card.json").read_text(encoding="utf-8"))
    assert card["withheld"]["answered"] >= 0.95
    assert card["bytes"] == (t5_dir() / "model.safetensors").stat().st_size
    assert sum(path.stat().st_size for path in t5_dir().iterdir()) <= 12e6


def test_it_answers_by_generation_what_was_withheld(loaded: LoadedModel) -> None:
    pairs = random.Random(1).sample(asked_pairs(withheld=True), 150)
    with torch.inference_mode():
        assert right(loaded, [(text, fact.target) for fact, text in pairs]) >= 0.93


def test_the_stream_asks_what_it_answers_and_teaches_what_it_does_not(loaded: LoadedModel) -> None:
    facts = [record.fact for record in read_facts([str(STREAM)])]
    assert len(facts) == 32
    assert right(loaded, [(fact.prompt, str(fact.target_true)) for fact in facts]) == 1
    assert right(loaded, [(fact.prompt, fact.target) for fact in facts]) == 0
    assert right(loaded, [(p.prompt, str(p.target)) for fact in facts for p in fact.locality]) == 1
