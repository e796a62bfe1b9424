"""A retraction proved: a store made without the facts is the state after it, to the last bit, or it is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lifelong_edit.editors.registry import rule_of
from lifelong_edit.errors import UsageError
from lifelong_edit.facts import Fact
from lifelong_edit.timeline import Timeline
from lifelong_edit.timeline.proving import NEAR, Compared, Proof, as_text, page_digest, page_of, prove

Start = Callable[..., Timeline]
Batch = Callable[..., list[Fact]]
Gate = Callable[..., dict[str, Any]]
WHEN = "2031-01-01T00:00:00+00:00"


@pytest.fixture
def store(start_store: Start, tmp_path: Path, batch: Batch, lenient: Gate) -> Timeline:
    """Two batches, and one fact of the first taken back."""
    timeline = start_store(tmp_path / "store", reconsolidation_passes=2)
    for number in (0, 1):
        timeline.apply(batch(number), gate=lenient)
    timeline.retract([batch(0)[1]], reason="withdrawn")
    return timeline


def test_a_store_without_the_fact_has_the_same_digests(store: Timeline, batch: Batch, tmp_path: Path) -> None:
    gone = batch(0)[1]
    with store:
        proof = prove(store, [gone.digest[:10]], keep=tmp_path / "made")
        after = store.show(3)
        rule = rule_of(store.settings.editor)
    assert (proof.verdict, proof.facts, proof.step, proof.distance) == ("equal", (gone.digest,), 3, 0.0)
    assert {one.part for one in proof.digests} == {"facts in force", "weights", "keys"}
    assert proof.head_free and proof.holding == (1, 2)
    with Timeline.open(tmp_path / "made", read_only=True) as made:
        assert (made.head, made.show(1).weights_digest) == (1, after.weights_digest)
        assert gone not in made.facts("all") and len(made.facts()) == 5
        assert (
            made.facts_by_digest([]) == {} and made.config == Timeline.open(tmp_path / "store", read_only=True).config
        )
    page = page_of(proof, rule, WHEN)
    text = as_text(page)
    assert page["page_digest"] == page_digest(json.loads(json.dumps(page))) and page["page_digest"] in text
    assert "EQUAL, to the last bit" in text and "withdrawn" in text and gone.digest in text
    assert gone.target not in json.dumps(page), "no text of the fact stands on its page"
    assert any("can still be gone back to and holds the fact: steps 1, 2;" in line for line in page["does_not_say"])
    page["verdict"] = "different"
    assert page_digest(page) != page["page_digest"]


def test_what_came_since_is_told(store: Timeline, batch: Batch, lenient: Gate) -> None:
    gone = batch(0)[1]
    with store:
        store.apply(batch(2), gate=lenient)
        rule = rule_of(store.settings.editor)
        proof = prove(store, [gone.digest])
        assert proof.verdict == "equal" and proof.step == 3 and proof.head_free
        assert any("no step since has taught the fact" in line for line in page_of(proof, rule, WHEN)["says"])
        # Several retractions: the last of them, whose state has none of the facts.
        store.retract([batch(2)[0]])
        both = prove(store, [gone.digest, batch(2)[0].digest])
        assert (both.step, both.verdict, len(both.facts)) == (5, "equal", 2)
        store.apply([gone], again=True, gate=lenient)
        with pytest.raises(UsageError, match="names no fact that was retracted"):
            prove(store, [gone.digest])


def test_facts_that_were_not_retracted_prove_nothing(store: Timeline, batch: Batch, tmp_path: Path) -> None:
    with store:
        for name in (batch(1)[0].digest, "ffffffff"):
            with pytest.raises(UsageError, match="names no fact that was retracted"):
                prove(store, [name])
        with pytest.raises(UsageError, match="no fact was named"):
            prove(store, [])
        (tmp_path / "taken").mkdir()
        (tmp_path / "taken" / "thing").write_text("")
        with pytest.raises(UsageError):
            prove(store, [batch(0)[1].digest], keep=tmp_path / "taken")


def test_a_state_that_is_another_is_not_proved(store: Timeline, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a rule whose solve depends on the way: here, one that is begun elsewhere the second time."""
    with store:
        editor = store.editor()
        plain = type(editor).relearn

        def drifting(self: Any, *arguments: Any, **more: Any) -> Any:
            change = plain(self, *arguments, **more)
            (whole,) = (part for name, part in change.parts.items() if name == "weights")
            moved = {name: array * np.float32(1.01) for name, array in whole.arrays.items()}
            return replace(change, parts={**change.parts, "weights": replace(whole, arrays=moved)})

        monkeypatch.setattr(type(editor), "relearn", drifting)
        proof = prove(store, [batch(0)[1].digest])
    assert proof.verdict == "different" and proof.distance == pytest.approx(0.01, rel=1e-3)
    assert not {one.part: one for one in proof.digests}["weights"].equal
    page = page_of(proof, rule_of(store.settings.editor), WHEN)
    assert "Nothing is proven." in page["says"][0] and "NOT EQUAL" in as_text(page)
    # In another environment a difference is rounding as long as it is small, and never called equal.
    near = replace(proof, changed=("torch 1, now 2",), distance=NEAR / 2)
    assert near.verdict == "near" and replace(near, changed=()).verdict == "different"
    assert replace(near, digests=(*near.digests, Compared("codebook", "x", "y"))).verdict == "different"
    assert replace(near, distance=NEAR * 2).verdict == "different"


def test_a_rule_that_remembers_facts_says_less(store: Timeline, batch: Batch) -> None:
    told = {"store": {"steps": 3}, "retraction": {"purged": {"aa": 4}}}
    proof = Proof(("aa",), 3, (Compared("facts in force", "x", "x"),), 0.0, (), False, (), told)
    page = {
        name: " ".join(lines) for name, lines in page_of(proof, rule_of("retrieval"), WHEN).items() if "say" in name
    }
    assert "remembers the facts themselves" in page["says"] and "nothing of weights" in page["says"]
    assert "nothing of weights" not in " ".join(page_of(proof, rule_of("retrieval+memit"), WHEN)["says"])
    assert "The state at the head: it holds something" in page["does_not_say"]
    assert "text" not in page["does_not_say"], "it was purged"
    assert "network" in " ".join(page_of(proof, rule_of("malmen"), WHEN)["does_not_say"])
    store.close()
