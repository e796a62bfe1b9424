"""What was retracted, purged or dismissed stays away when it comes again, until somebody asks for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lifelong_edit.facts import Fact, Record
from lifelong_edit.timeline import Timeline
from lifelong_edit.timeline.purging import purge
from lifelong_edit.timeline.sieve import Skip

Start = Callable[..., Timeline]
MakeFact = Callable[..., Fact]
Place = Callable[..., list[Record]]
Gate = Callable[..., dict[str, Any]]


def test_a_retracted_fact_comes_back_only_if_asked_for(
    timeline: Timeline, fact: MakeFact, placed: Place, lenient: Gate
) -> None:
    gone, other = fact(0), fact(1)
    timeline.apply(placed([gone, other]), gate=lenient)
    step = timeline.retract([gone], reason="withdrawn")
    for batch in (placed([gone], "b"), [gone]):
        assert timeline.apply(batch, gate=lenient).step == step.step
        assert timeline.sieve(batch).skips == [Skip(gone.digest, "retracted", step.step)]
        assert timeline.facts() == [other]
    back = timeline.apply(placed([gone], "b"), again=True, gate=lenient)
    assert (back.added, len(back.places)) == ((gone.digest,), 1)
    # It is a fact like any other now: replaced, it is news from a new place.
    timeline.apply([fact(0, "Vienna")], gate=lenient)
    assert timeline.apply(placed([gone], "c"), gate=lenient).added == (gone.digest,)


def test_the_line_of_the_state_counts(timeline: Timeline, fact: MakeFact, placed: Place, lenient: Gate) -> None:
    gone = fact(0)
    timeline.apply([fact(1)], gate=lenient)
    timeline.apply([gone], gate=lenient)
    step = timeline.retract([gone])
    timeline.rollback(2)
    assert timeline.sieve([gone]).counts() == {"live": 1}
    timeline.branch("before", 1)
    assert timeline.apply(placed([gone]), gate=lenient).added == (gone.digest,), "here nobody took it back"
    timeline.branch("after", step.step)
    assert timeline.sieve([gone]).counts() == {"retracted": 1}


def test_what_was_replaced_or_revived_was_not_taken_back(timeline: Timeline, fact: MakeFact, lenient: Gate) -> None:
    first, second = fact(0, "Paris"), fact(0, "Vienna")
    for version in (first, second):
        timeline.apply([version], gate=lenient)
    timeline.retract([second], revive=True)
    assert timeline.sieve([second, first]).counts() == {"retracted": 1, "live": 1}
    timeline.apply([fact(0, "Rome")], gate=lenient)
    assert timeline.sieve([first]).facts == [first], "replaced twice, taken back never"


def test_a_retracted_fact_is_not_revived_with_another(timeline: Timeline, fact: MakeFact, lenient: Gate) -> None:
    first, second = fact(0, "Paris"), fact(0, "Vienna")
    for version in (first, second):
        timeline.apply([version], gate=lenient)
    timeline.apply([first], conflicts="keep", gate=lenient)
    timeline.retract([first])
    assert timeline.retract([second], revive=True).added == ()


def test_a_purged_fact_stays_away_on_every_branch(
    start_store: Start, tmp_path: Path, fact: MakeFact, placed: Place, lenient: Gate
) -> None:
    path, old, new = tmp_path / "store", fact(0, "Paris"), fact(0, "Vienna")
    with start_store(path) as timeline:
        for version in (old, new):
            timeline.apply([version], gate=lenient)
        timeline.reconsolidate(guard=False)
    step = purge(path, [old.digest], reason="asked for").step
    with Timeline.open(path) as timeline:
        for _ in range(2):
            assert timeline.sieve(placed([old], "b")).skips == [Skip(old.digest, "purged", step)]
            assert timeline.apply([old], gate=lenient).step == timeline.head
            timeline.branch("elsewhere", 0) if timeline.head == step else None
        timeline.switch("main")
        assert timeline.retract([new], revive=True).added == (), "there is nothing to revive"
        assert timeline.apply([old], again=True, gate=lenient).added == (old.digest,)
        assert timeline.facts() == [old]


def test_what_review_turned_down_stays_away(
    start_store: Start, tmp_path: Path, fact: MakeFact, placed: Place, lenient: Gate
) -> None:
    with start_store(tmp_path / "careful", conflict_policy="quarantine") as timeline:
        timeline.apply([fact(0, "Paris"), fact(1, "Paris")], gate=lenient)
        hoax, slip = fact(0, "Vienna"), fact(1, "Vienna")
        timeline.apply(placed([hoax, slip]), gate=lenient)
        dismissed = timeline.dismiss([hoax], reason="a hoax").step
        right = msgspec.structs.replace(slip, target="Warsaw")
        corrected = timeline.apply(
            [Record(right, "r", 1, "r" * 32, 0, quarantined=slip.digest)], reviewed=True, gate=lenient
        )
        assert corrected.added == (right.digest,)
        for policy in ("quarantine", "supersede"):
            left = timeline.sieve(placed([hoax, slip], "b"), conflicts=policy)
            assert left.skips == [
                Skip(hoax.digest, "dismissed", dismissed),
                Skip(slip.digest, "dismissed", corrected.step),
            ]
            assert timeline.apply(left, gate=lenient).step == timeline.head
        assert timeline.apply([hoax], again=True, gate=lenient).kind == "decide"
        assert timeline.facts("quarantined") == [hoax]
        # Reviewed as it was, and needless then: nothing was turned down.
        timeline.apply([hoax], reviewed=True, conflicts="reject", gate=lenient)
        assert timeline.sieve([hoax]).facts == [hoax]


def test_a_rolled_back_dismissal_is_none(
    start_store: Start, tmp_path: Path, fact: MakeFact, placed: Place, lenient: Gate
) -> None:
    with start_store(tmp_path / "careful", conflict_policy="quarantine") as timeline:
        timeline.apply([fact(0, "Paris")], gate=lenient)
        hoax = fact(0, "Vienna")
        aside = timeline.apply(placed([hoax]), gate=lenient).step
        timeline.dismiss([hoax])
        timeline.rollback(aside)
        assert timeline.sieve([hoax]).counts() == {"quarantined": 1}
        timeline.rollback(1)
        assert timeline.sieve([hoax]).facts == [hoax]


@pytest.mark.parametrize("again", [False, True])
def test_the_rest_of_a_batch_is_taught(
    timeline: Timeline, fact: MakeFact, placed: Place, lenient: Gate, again: bool
) -> None:
    timeline.apply([fact(0)], gate=lenient)
    timeline.retract([fact(0)])
    step = timeline.apply(placed([fact(0), fact(1)], "b"), again=again, gate=lenient)
    assert len(step.added) == 1 + again
    assert [place.number for place in step.places] == ([0, 1] if again else [1])
    if not again:
        later = timeline.apply(placed([fact(0), fact(1)], "b"), again=True, gate=lenient)
        assert later.added == (fact(0).digest,), "the same file, now asked for"
