"""Tags that stay, branches that move: what each names, what a stream does on another branch, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lifelong_edit.errors import StoreError, UsageError
from lifelong_edit.facts import Fact, Record
from lifelong_edit.stores import tensors_digest
from lifelong_edit.timeline import Timeline

Batch = Callable[..., list[Fact]]
Place = Callable[..., list[Record]]
Gate = Callable[..., dict[str, Any]]


def tips(timeline: Timeline) -> dict[str, tuple[int, int, bool]]:
    return {b.name: (b.tip, b.state, b.current) for b in timeline.branches()}


def test_a_tag_stays_and_a_branch_moves(timeline: Timeline, batch: Batch, lenient: Gate) -> None:
    first = timeline.apply(batch(0), gate=lenient)
    made = timeline.tag("release-1", reason="checked")
    assert (made.kind, made.name, made.named, made.parent, made.reason) == ("tag", "release-1", 1, 1, "checked")
    assert (made.weights_digest, made.live_digest, made.blobs) == (first.weights_digest, first.live_digest, ())
    second = timeline.apply(batch(1), gate=lenient)
    assert [(tag.name, tag.step, tag.live_facts) for tag in timeline.tags()] == [("release-1", 1, 3)]
    assert timeline.show("release-1") == first
    assert timeline.show("main") == timeline.show("head") == second
    assert timeline.at("release-1").facts() == batch(0)
    back = timeline.rollback("release-1")
    assert (back.weights_digest, back.name, back.named) == (first.weights_digest, None, None)
    assert tips(timeline) == {"main": (4, 1, True)}


def test_branches_go_their_own_ways(timeline: Timeline, batch: Batch, lenient: Gate) -> None:
    for i in range(2):
        timeline.apply(batch(i), gate=lenient)
    begun = timeline.branch("trial", 1)
    assert (begun.kind, begun.parent, begun.named) == ("branch", 1, 1)
    assert begun.weights_digest == timeline.show(1).weights_digest == tensors_digest(timeline.weights("head"))
    assert timeline.facts() == batch(0)
    assert tips(timeline) == {"main": (2, 2, False), "trial": (1, 1, True)}
    other = timeline.apply(batch(5), gate=lenient)
    assert (other.step, other.parent) == (4, 1)
    assert timeline.switch("main").weights_digest == timeline.show(2).weights_digest
    assert timeline.facts() == [*batch(0), *batch(1)]
    third = timeline.apply(batch(2), gate=lenient)
    assert third.parent == 2
    timeline.switch("trial")
    assert timeline.facts() == [*batch(0), *batch(5)]
    assert tips(timeline) == {"main": (6, 6, False), "trial": (4, 4, True)}
    assert [timeline.history().made_on(step) for step in range(8)] == [
        *("main", "main", "main", "trial", "trial", "main", "main", "trial")
    ]
    assert timeline.history().ancestor("main", "trial") == 1
    assert timeline.status()["branch"] == "trial"


def test_a_rollback_moves_the_current_branch_alone(timeline: Timeline, batch: Batch, lenient: Gate) -> None:
    timeline.apply(batch(0), gate=lenient)
    timeline.branch("trial")
    timeline.apply(batch(1), gate=lenient)
    timeline.rollback(0)
    assert tips(timeline) == {"main": (1, 1, False), "trial": (4, 0, True)}
    timeline.switch("main")
    assert timeline.facts() == batch(0)
    assert timeline.switch("trial").weights_digest == timeline.show(0).weights_digest


def test_a_file_can_be_streamed_on_each_branch(timeline: Timeline, batch: Batch, placed: Place, lenient: Gate) -> None:
    """What another branch was given does not count; what this one rolled back does."""
    one, two = placed(batch(0), "a"), placed(batch(1), "b")
    timeline.apply(one, gate=lenient)
    digest = timeline.apply(two, gate=lenient).weights_digest
    timeline.branch("trial", 1)
    assert timeline.sieve(one).counts() == {"consumed": 3}  # it is in the state that the branch began at
    assert timeline.apply(two, gate=lenient).weights_digest == digest  # no --again
    timeline.rollback(1)
    assert timeline.sieve(two).counts() == {"rolled-back": 3}
    timeline.switch("main")
    assert timeline.sieve(two).counts() == {"consumed": 3}
    timeline.rollback(1)
    assert timeline.sieve(two).counts() == {"rolled-back": 3}
    timeline.branch("anew", 0)
    assert timeline.sieve([*one, *two]).counts() == {}
    timeline.apply(placed([*batch(1), *batch(0)], "c"), gate=lenient)  # the same facts in another order
    assert timeline.facts() == [*batch(1), *batch(0)]
    timeline.switch("trial")
    timeline.delete_branch("anew")
    timeline.branch("anew", 0)  # a new one of the same name knows nothing of the former
    assert timeline.sieve(one).counts() == {}


def test_the_same_facts_on_two_branches_reconsolidate_to_the_same_weights(
    start_store: Callable[..., Timeline], tmp_path: Path, batch: Batch, lenient: Gate
) -> None:
    """Solved again from the base weights, nothing is left of the order in which they came."""
    with start_store(tmp_path / "store", reconsolidation_passes=2) as timeline:
        digests = {}
        for name, order in (("one", (0, 1)), ("other", (1, 0))):
            timeline.branch(name, 0)
            for i in order:
                timeline.apply(batch(i), gate=lenient)
            edited = timeline.show("head").weights_digest
            digests[name] = (edited, timeline.reconsolidate(guard=False).weights_digest)
        assert digests["one"][0] != digests["other"][0]
        assert digests["one"][1] == digests["other"][1]
        assert timeline.diff("one", "other").differing == ()
        assert all(change.norm == 0 for change in timeline.diff("one", "other").weights.values())
        assert timeline.history().edits("one") == timeline.history().edits("other") == (0, 2)


def test_names_go_and_come_again(timeline: Timeline, batch: Batch, lenient: Gate) -> None:
    timeline.apply(batch(0), gate=lenient)
    timeline.tag("mark")
    gone = timeline.delete_tag("mark", reason="too early")
    assert (gone.kind, gone.name, gone.named, gone.reason) == ("tag", "mark", None, "too early")
    assert timeline.tags() == []
    timeline.tag("mark", 0)
    timeline.branch("trial", "mark")
    timeline.switch("main")
    assert timeline.facts() == batch(0)
    timeline.delete_branch("trial")
    assert [branch.name for branch in timeline.branches()] == ["main"]
    assert timeline.facts() == batch(0)
    timeline.branch("trial", 1)
    assert timeline.show("trial").step == 1


def test_what_is_so_already_makes_no_step(timeline: Timeline) -> None:
    timeline.tag("mark")
    head = timeline.head
    assert timeline.tag("mark").step == timeline.tag("mark", 0).step == timeline.switch("main").step == head
    assert timeline.head == head


@pytest.mark.parametrize(
    "name", ["", "7", "007", "head", "HEAD", "-x", ".x", "/x", "a b", "a\nb", "mark\n", "café", "x" * 101, "a~1", "-1"]
)
def test_odd_names_are_refused(timeline: Timeline, name: str) -> None:
    for call in (timeline.tag, timeline.branch):
        with pytest.raises(UsageError, match=r"found the name .*; expected up to 100 letters, .*; choose another"):
            call(name)
    assert timeline.head == 0


@pytest.mark.parametrize("name", ["v1", "2026-W12", "news/march", "_x", "1.0", "0x1F"])
def test_names_that_are_none_of_these_are_taken(timeline: Timeline, name: str) -> None:
    timeline.tag(name)
    assert timeline.show(name).step == 0


def test_names_are_of_one_thing(timeline: Timeline, batch: Batch, lenient: Gate) -> None:
    timeline.tag("mark")
    timeline.branch("trial")
    timeline.apply(batch(0), gate=lenient)
    head = timeline.head
    for name, kind in (("mark", "tag"), ("trial", "branch"), ("main", "branch")):
        for call in (timeline.tag, timeline.branch):
            with pytest.raises(UsageError, match=f"there is a {kind} '{name}' already"):
                call(name)
    assert timeline.head == head


def test_wrong_names_are_told_what_there_is(timeline: Timeline) -> None:
    with pytest.raises(UsageError, match="no tag 'marc'; expected none, for there are none"):
        timeline.delete_tag("marc")
    timeline.tag("mark")
    timeline.branch("trial")
    with pytest.raises(UsageError, match="no branch 'mark'; expected one of main, trial"):
        timeline.switch("mark")
    with pytest.raises(UsageError, match="no tag 'trial'; expected one of mark"):
        timeline.delete_tag("trial")
    for call in (timeline.rollback, timeline.show, timeline.at, timeline.weights):
        with pytest.raises(
            UsageError, match=r"'tria' names no step; .* a number from 0 to 2, or one of main, mark, trial"
        ):
            call("tria")
    with pytest.raises(UsageError, match="there is no step 9; the log holds steps 0 to 2"):
        timeline.branch("other", 9)
    with pytest.raises(UsageError, match="'trial' is the current one; expected another; switch away"):
        timeline.delete_branch("trial")
    with pytest.raises(UsageError, match="'main' cannot be deleted"):
        timeline.delete_branch("main")
    assert timeline.head == 2


def test_what_names_protect(timeline: Timeline, batch: Batch, lenient: Gate) -> None:
    for i in range(3):
        timeline.apply(batch(i), gate=lenient)
    assert timeline.history().protected() == {3: ["head", "main"]}
    timeline.tag("kept", 1)
    timeline.tag("base", 0)
    timeline.rollback(2)
    timeline.branch("trial", 1)
    assert timeline.history().protected() == {1: ["head", "kept", "trial"], 0: ["base"], 2: ["main"]}
    timeline.delete_tag("base")
    timeline.switch("main")
    timeline.delete_branch("trial")
    assert timeline.history().protected() == {2: ["head", "main"], 1: ["kept"]}


def test_nothing_is_named_in_a_store_that_may_only_be_read(timeline: Timeline) -> None:
    timeline.close()
    with Timeline.open(timeline.path, read_only=True) as reader:
        for call in (reader.tag, reader.branch, reader.switch, reader.delete_tag, reader.delete_branch):
            with pytest.raises(StoreError, match="open read-only"):
                call("main")


def test_a_reader_sees_names_move(timeline: Timeline, batch: Batch, lenient: Gate) -> None:
    with Timeline.open(timeline.path, read_only=True) as reader:
        timeline.apply(batch(0), gate=lenient)
        timeline.branch("trial", 0)
        timeline.tag("mark", 1)
        assert tips(reader) == tips(timeline) == {"main": (1, 1, False), "trial": (0, 0, True)}
        assert reader.show("mark").step == 1
