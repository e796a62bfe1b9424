"""The state that goes on from batch to batch, and all that is derived of it, is the one that is read from the log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lifelong_edit.facts import Fact
from lifelong_edit.judging import forgetting
from lifelong_edit.stores import encode_entries
from lifelong_edit.timeline import Timeline
from lifelong_edit.timeline.history import History
from lifelong_edit.timeline.solving import Solving
from lifelong_edit.tracked import in_order

MakeBatch = Callable[..., list[Fact]]
MakeFact = Callable[..., Fact]
BATCHES = 5


def read_anew(timeline: Timeline) -> Solving:
    """The state at the head as a process that begins has it."""
    timeline._solving = None
    found: Solving = timeline._solve()
    return found


def grams(timeline: Timeline, solving: Solving) -> dict[str, bytes]:
    """What a solve would hold still of all live facts."""
    preservation, state = timeline.editor().preservation, solving.state()  # type: ignore[attr-defined]
    return {name: gram.over(state.keys).numpy().tobytes() for name, gram in preservation._live.items()}


def test_what_is_followed_is_what_is_read(
    timeline: Timeline, batch: MakeBatch, fact: MakeFact, lenient: Callable[..., Any]
) -> None:
    steps = [
        lambda: timeline.apply(batch(0), gate=lenient),
        lambda: timeline.apply([fact(0, "Sydney"), *batch(1)], gate=lenient),
        lambda: timeline.rollback(1),
        lambda: timeline.apply([fact(1, "Oslo"), fact(9)], gate=lenient),
        lambda: timeline.reconsolidate(guard=False),
        lambda: timeline.retract([fact(9)]),
        lambda: timeline.apply([fact(1, "Kenya")], gate=lenient),
    ]
    for step in steps:
        followed = timeline._solve()
        keys = followed.state().keys
        record = step()  # type: ignore[no-untyped-call]
        state, index = followed.state(), sorted(followed.index().facts)
        assert record.kind != "edit" or state.keys is keys, "what is there already was copied"
        sums = grams(timeline, followed)
        anew = read_anew(timeline)
        other = anew.state()
        assert state.digest == other.digest and state.live == other.live
        assert list(in_order(state.live)) == sorted(other.live) == index == sorted(anew.index().facts)
        assert encode_entries(state.keys) == encode_entries(other.keys)
        assert all(torch.equal(state.shifts[name], shift) for name, shift in other.shifts.items())
        about = {f.about.casefold() for f in other.live.values()}
        assert all((f.about.casefold() in state.subjects()) == (f.about.casefold() in about) for f in batch(0, 12))
        assert sums == grams(timeline, anew)
        timeline._solving = followed
        fresh = History(timeline.log())
        assert vars(timeline.history().fold(timeline.head)) == vars(fresh.fold(fresh.head))
        assert timeline.history().edits(timeline.head) == fresh.edits(fresh.head)


def test_many_live_facts_are_stood_for_by_some(
    timeline: Timeline, batch: MakeBatch, lenient: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(BATCHES):
        timeline.apply(batch(number), gate=lenient)
    exact = timeline.forecast(batch(BATCHES))
    monkeypatch.setattr(forgetting, "LOOKED_AT", 8)
    some = timeline.forecast(batch(BATCHES))
    assert exact is not None and some is not None and some == timeline.forecast(batch(BATCHES))
    assert some["live"] == exact["live"] == 3 * BATCHES
    assert some["forgotten"] == pytest.approx(some["share"] * some["live"])
    assert some["share"] != exact["share"] and some["share"] == pytest.approx(exact["share"], abs=0.2)


def test_a_fact_that_came_without_a_batch_can_be_replaced(
    timeline: Timeline, batch: MakeBatch, fact: MakeFact, lenient: Callable[..., Any]
) -> None:
    """A fact that was settled had no conflicts of its own: what it took the place of is nobody."""
    timeline.settle(batch(0))
    record = timeline.apply([fact(0, "Sydney")], gate=lenient)
    assert record.superseded == (fact(0).digest,)
    assert timeline.history().predecessors(timeline.head, [fact(0, "Sydney").digest]) == [
        fact(0, "Sydney").digest,
        fact(0).digest,
    ]
