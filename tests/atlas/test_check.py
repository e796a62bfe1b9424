"""atlas-check: what it was made from gives no label away, and what it was made for it does."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

from lifelong_edit.atlas import check_edits_path, check_model_dir, check_preserved_path
from lifelong_edit.atlas.claims import LABELS, claims_of, exchanged
from lifelong_edit.atlas.world_tables import held_pairs, trained_pairs, untrained_pairs
from lifelong_edit.facts import read_facts, read_prompts
from lifelong_edit.models import load_model
from lifelong_edit.tasks import task_of


def test_no_words_give_a_label_away() -> None:
    """Each subject and each object of a phrasing stands in as many true claims as false ones."""
    claims = claims_of(held_pairs(), "judged")
    assert len(claims) > 0.95 * 2 * len(held_pairs())
    assert Counter(claim.label for claim in claims) == dict.fromkeys(LABELS, len(claims) // 2)
    balance = Counter[tuple[str, int, str]]()
    for claim in claims:
        phrasing = claim.fact.prompts.index(claim.prompt)
        for spoken in (claim.fact.subject + " of whom it is said", claim.said):
            balance[claim.fact.relation, phrasing, spoken] += 1 if claim.true else -1
    assert set(balance.values()) == {0}


def test_claims_that_are_judged_are_in_no_training() -> None:
    taught = {prompt for _, prompt in trained_pairs()}
    assert not taught & {prompt for pairs in (held_pairs(), untrained_pairs()) for _, prompt in pairs}


def test_objects_are_exchanged_without_a_rest() -> None:
    targets = list("aaabbbc")
    places = exchanged(targets, 3)
    assert sorted(places) == list(range(7)) and all(targets[p] != targets[i] for i, p in enumerate(places))
    with pytest.raises(ValueError, match="4 of 7"):
        exchanged(list("aaaabbc"), 3)


def test_the_card_holds_what_is_promised() -> None:
    card = json.loads((check_model_dir() / "card.json").read_text())
    assert card["withheld"]["right"] >= 0.97 and card["untrained"]["right"] >= 0.97
    assert min(card["withheld"][label] for label in LABELS) >= 0.95
    assert sum(path.stat().st_size for path in check_model_dir().iterdir()) <= 12e6


def test_it_tells_claims_and_its_files_are_about_those() -> None:
    """A sample of withheld claims; flips are of claims that it tells right, preserved ones of other subjects."""
    loaded = load_model("atlas-check")
    task = task_of(loaded)
    claims = claims_of(held_pairs(), "tested")[::40]
    with torch.inference_mode():
        said = task.answer(loaded, [claim.text for claim in claims], 1)
    right = [loaded.labels[found.ids[0]] == claim.label for found, claim in zip(said, claims, strict=True)]
    assert sum(right) >= 0.95 * len(right)
    flips = [record.fact for record in read_facts([str(check_edits_path())])]
    kept = list(read_prompts([str(check_preserved_path())]))
    assert not {fact.subject for fact in flips} & {probe.subject for probe in kept}
    found = task.answer(loaded, [fact.prompt for fact in flips], 1)
    assert [loaded.labels[one.ids[0]] for one in found] == [fact.target_true for fact in flips]
