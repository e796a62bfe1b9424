"""What lies between two states: facts by what became of them, weights, answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lifelong_edit.errors import UsageError
from lifelong_edit.facts import Fact
from lifelong_edit.timeline import Timeline
from lifelong_edit.timeline.diff import _changes, answers

MakeFact = Callable[..., Fact]
Batch = Callable[..., list[Fact]]
Gate = Callable[..., dict[str, Any]]


def digests(*facts: Fact) -> tuple[str, ...]:
    return tuple(fact.digest for fact in facts)


def test_facts_by_what_became_of_them(timeline: Timeline, fact: MakeFact, lenient: Gate) -> None:
    timeline.apply([fact(i) for i in range(4)], gate=lenient)
    new = fact(0, "Kenya")
    timeline.apply([new, fact(9)], gate=lenient)
    timeline.retract([fact(1)])
    there = timeline.diff(1, "main")
    assert (there.one, there.other, there.ancestor) == (1, 3, 1)
    assert there.added == digests(new, fact(9))
    assert there.superseded == {fact(0).digest: new.digest}
    assert (there.retracted, there.unknown) == (digests(fact(1)), ())
    assert there.kept == digests(fact(2), fact(3))
    back = timeline.diff("main", 1)
    assert back.added == digests(fact(0), fact(1))
    assert (back.superseded, back.retracted) == ({}, ())
    assert back.unknown == digests(new, fact(9))  # the earlier state does not know them
    assert back.kept == there.kept
    same = timeline.diff(2, 2)
    assert same.differing == () and len(same.kept) == 5
    assert [change.norm for change in same.weights.values()] == [0.0] * 4


def test_branches_against_each_other(timeline: Timeline, batch: Batch, lenient: Gate) -> None:
    timeline.apply(batch(0), gate=lenient)
    timeline.branch("trial")
    timeline.apply(batch(1), gate=lenient)
    timeline.switch("main")
    timeline.apply(batch(2), gate=lenient)
    timeline.tag("mark")
    found = timeline.diff("mark", "trial")
    assert found.ancestor == 1
    assert (found.added, found.unknown) == (digests(*batch(1)), digests(*batch(2)))
    assert found.kept == digests(*batch(0))


def test_weights_by_module(timeline: Timeline, batch: Batch, lenient: Gate) -> None:
    for i in range(2):
        timeline.apply(batch(i), gate=lenient)
    one, other = timeline.weights(1), timeline.weights(2)
    found = timeline.diff(1, 2).weights
    assert found.keys() == one.keys()
    for name, change in found.items():
        expected = np.sqrt(((other[name].astype(np.float64) - one[name].astype(np.float64)) ** 2).sum())
        assert change.norm == pytest.approx(expected, rel=1e-12) and expected > 0
        assert change.share == pytest.approx(expected / np.sqrt((one[name].astype(np.float64) ** 2).sum()), rel=1e-12)
    assert all(math.isinf(change.share) for change in timeline.diff(0, 1).weights.values())
    assert timeline.diff(0, 0).weights["transformer.h.0.mlp.c_proj"].share == 0


def test_answers_of_both(timeline: Timeline, batch: Batch, lenient: Gate) -> None:
    timeline.apply([*batch(0), *batch(1), *batch(2)], gate=lenient)
    timeline.apply(batch(3), gate=lenient)
    found = timeline.diff(1, 2)
    told = answers(timeline, found, sample=4)
    assert [answer.fact for answer in told[:3]] == list(found.added)
    sampled = [answer.fact for answer in told[3:]]
    assert len(sampled) == 4 and set(sampled) < set(found.kept)
    assert answers(timeline, found, sample=4) == told
    assert any(answer.changed for answer in told[:3])
    for answer in told:
        for step, said in ((1, answer.before), (2, answer.after)):
            full = timeline.at(step).ask(answer.prompt, max_new_tokens=30)
            assert said and full.startswith(said)
        assert answer.changed == (answer.before != answer.after)
    assert not any(answer.changed for answer in answers(timeline, timeline.diff(2, 2)))
    assert len(answers(timeline, found, sample=0)) == 3
    assert len(answers(timeline, found, sample=99)) == 12


def test_steps_that_are_not_there(timeline: Timeline) -> None:
    with pytest.raises(UsageError, match="'nowhere' names no step"):
        timeline.diff(0, "nowhere")
    with pytest.raises(UsageError, match="there is no step 5"):
        timeline.diff(5, 0)


def test_modules_are_told_in_the_order_of_their_layers() -> None:
    names = [f"transformer.h.{layer}.mlp.c_proj" for layer in (10, 2, 11, 1)]
    zero = {name: np.zeros((2, 2), np.float32) for name in names}
    assert [name.split(".")[2] for name in _changes(zero, dict(reversed(zero.items())))] == ["1", "2", "10", "11"]
