"""What a batch leaves out, and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import torch

from lifelong_edit.errors import StepRefusedError
from lifelong_edit.facts import Fact, Record
from lifelong_edit.models import BASE
from lifelong_edit.timeline import Timeline

MakeFact = Callable[..., Fact]
Place = Callable[..., list[Record]]
Gate = Callable[..., dict[str, Any]]


def test_a_stream_that_is_run_again_does_nothing(timeline: Timeline, batch: Any, placed: Place, lenient: Gate) -> None:
    records = placed(batch(0))
    assert timeline.apply(records, gate=lenient).step == 1
    assert timeline.apply(records, gate=lenient).step == 1
    assert timeline.sieve(records).counts() == {"consumed": 3}
    assert timeline.apply(records, again=True, gate=lenient).step == 1


def test_facts_equal_to_live_ones_and_repetitions_are_left_out(
    timeline: Timeline, batch: Any, fact: MakeFact, placed: Place, lenient: Gate
) -> None:
    timeline.apply(placed(batch(0)), gate=lenient)
    step = timeline.apply(placed([fact(0), fact(5), fact(5), fact(2)], "b"), gate=lenient)
    assert step.added == (fact(5).digest,)
    assert step.skipped == (fact(0).digest, fact(5).digest, fact(2).digest)
    assert step.report["skipped"] == {"live": 2, "repeated": 1}
    assert [place.number for place in step.places] == [0, 1, 2, 3]


def test_what_says_the_same_without_a_subject_counts_as_live(timeline: Timeline, fact: MakeFact, lenient: Gate) -> None:
    timeline.apply([fact(0)], gate=lenient)
    bare = msgspec.structs.replace(fact(0), subject=None, relation=None, id="again")
    step = timeline.apply([bare, fact(1)], gate=lenient)
    assert (step.added, step.skipped) == ((fact(1).digest,), (bare.digest,))
    assert step.report["skipped"] == {"live": 1}


def test_a_fact_comes_back_from_a_new_place(timeline: Timeline, fact: MakeFact, placed: Place, lenient: Gate) -> None:
    a, b = fact(0, "Paris"), fact(0, "Vienna")
    for number, (item, file) in enumerate([(a, "a"), (b, "b"), (a, "c")], 1):
        step = timeline.apply(placed([item], file), gate=lenient)
        assert (step.step, step.added) == (number, (item.digest,))
        assert timeline.facts() == [item]
    assert step.superseded == (b.digest,)
    assert timeline.facts("superseded") == [b]
    for item, file in ((a, "a"), (b, "b"), (a, "c")):
        assert timeline.apply(placed([item], file), gate=lenient).step == 3


def test_a_record_left_out_as_live_is_consumed_all_the_same(
    timeline: Timeline, fact: MakeFact, placed: Place, lenient: Gate
) -> None:
    """Otherwise a stream A, A, B that is run again would take the second A for news and undo B."""
    a, b = fact(0, "Paris"), fact(0, "Vienna")
    stream = placed([a, a, b])
    for record in stream:
        timeline.apply([record], gate=lenient)
    assert timeline.head == 2
    for record in stream:
        timeline.apply([record], gate=lenient)
    assert timeline.head == 2
    assert timeline.facts() == [b]


def test_what_was_rolled_back_needs_to_be_asked_for(
    timeline: Timeline, batch: Any, placed: Place, lenient: Gate
) -> None:
    first = timeline.apply(placed(batch(0)), gate=lenient)
    timeline.rollback(0)
    assert timeline.apply(placed(batch(0)), gate=lenient).step == 2
    assert timeline.sieve(placed(batch(0))).counts() == {"rolled-back": 3}
    assert timeline.sieve(placed(batch(0), "new")).counts() == {"rolled-back": 3}
    mixed = timeline.apply(placed([*batch(0), *batch(1)]), gate=lenient)
    assert mixed.report["skipped"] == {"rolled-back": 3}
    assert len(mixed.added) == 3
    timeline.rollback(0)
    again = timeline.apply(placed(batch(0)), again=True, gate=lenient)
    assert again.weights_digest == first.weights_digest
    assert again.places == first.places


def test_of_two_facts_that_contradict_each_other_in_a_batch_the_later_counts(
    timeline: Timeline, fact: MakeFact, lenient: Gate
) -> None:
    step = timeline.apply([fact(0, "Paris"), fact(1), fact(0, "Vienna")], gate=lenient)
    assert step.added == (fact(1).digest, fact(0, "Vienna").digest)
    assert step.report["skipped"] == {"contradicted": 1}


def test_a_contradiction_replaces_the_live_fact(timeline: Timeline, fact: MakeFact, lenient: Gate) -> None:
    old, new = fact(0, "Paris"), fact(0, "Vienna")
    timeline.apply([old, fact(1)], gate=lenient)
    step = timeline.apply([new], gate=lenient)
    assert step.superseded == (old.digest,)
    (conflict,) = [c for c in step.report["conflicts"] if c["action"] == "supersede"]
    assert (conflict["kind"], conflict["new"], conflict["old"]) == ("contradiction", new.digest, old.digest)
    assert {f.digest for f in timeline.facts()} == {fact(1).digest, new.digest}


@pytest.mark.parametrize("policy", ["reject", "keep"])
def test_the_policy_decides(
    start_store: Callable[..., Timeline], tmp_path: Any, fact: MakeFact, lenient: Gate, policy: str
) -> None:
    with start_store(tmp_path / "store", conflict_policy=policy) as timeline:
        timeline.apply([fact(0, "Paris")], gate=lenient)
        step = timeline.apply([fact(0, "Vienna"), fact(1)], gate=lenient)
        assert step.superseded == ()
        assert (fact(0, "Vienna").digest in step.added) == (policy == "keep")
        assert len(timeline.facts()) == (3 if policy == "keep" else 2)


def test_a_refused_step_leaves_model_and_store_alone(timeline: Timeline, batch: Any, lenient: Gate) -> None:
    def refuse(*_: object) -> dict[str, Any]:
        raise StepRefusedError("the batch was refused: no reason")

    timeline.apply(batch(0), gate=lenient)
    answer, status = timeline.at(1).ask(batch(0)[0].prompt), timeline.status()
    with pytest.raises(StepRefusedError, match="no reason"):
        timeline.apply(batch(1), gate=refuse)
    for place, step in ((timeline.bench().loaded.at(BASE), 0), (timeline.at("head").standing(), 1)):
        with place as loaded:
            standing, fresh = loaded.model.state_dict(), timeline.at(step).model().state_dict()
            assert all(torch.equal(standing[name], fresh[name]) for name in fresh)
    assert {**timeline.status(), "bytes": 0} == {**status, "bytes": 0}
    assert timeline.at(1).ask(batch(0)[0].prompt) == answer
    assert timeline.preview(batch(1), gate=lenient) is not None
    first = timeline.apply(batch(1), gate=lenient).weights_digest
    timeline.rollback(1)
    assert timeline.apply(batch(1), gate=lenient, again=True).weights_digest == first


def test_a_preview_commits_nothing(timeline: Timeline, batch: Any, fact: MakeFact, lenient: Gate) -> None:
    timeline.apply(batch(0), gate=lenient)
    report = timeline.preview([fact(0, "Vienna"), fact(7)], gate=lenient)
    assert report is not None
    assert report["conflicts"][0]["action"] == "supersede"
    assert report["gate"] == {"judge": "none"}
    assert timeline.preview(batch(0), gate=lenient) is None
    assert (timeline.head, len(timeline.facts())) == (1, 3)


def test_numbers_that_are_not_finite_are_never_committed(timeline: Timeline, batch: Any) -> None:
    def poison(bench: Any, state: Any, proposal: Any, facts: Any) -> dict[str, Any]:
        for shift in proposal.shift.values():
            shift.array[0, 0] = float("nan")
        return {}

    with pytest.raises(Exception, match=r"NaN or infinite|not finite"):
        timeline.apply(batch(0), gate=poison)
    assert timeline.head == 0


def test_a_place_with_nothing_to_do_is_known_on_its_branch_alone(
    timeline: Timeline, fact: MakeFact, placed: Place, lenient: Gate
) -> None:
    """It was consumed at a state that is rolled back, where its fact is superseded: no news, here or once reopened."""
    old, new, path = fact(0, "Paris"), fact(0, "Vienna"), timeline.path
    timeline.apply(placed([old], "a"), gate=lenient)
    timeline.apply(placed([new], "b"), gate=lenient)
    timeline.apply(placed([old], "c"), gate=lenient)
    again = placed([old], "d")
    assert timeline.apply(again, gate=lenient).step == 3
    timeline.rollback(2)
    assert timeline.sieve(again).counts() == {"rolled-back": 1}
    timeline.close()
    with Timeline.open(path) as reopened:
        assert reopened.sieve(again).counts() == {"rolled-back": 1}
        reopened.branch("trial", 2)
        assert reopened.sieve(again).facts == [old]
