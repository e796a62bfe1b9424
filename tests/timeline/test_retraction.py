"""Facts taken back: the store that is left is one that never had them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lifelong_edit.errors import UsageError
from lifelong_edit.facts import Fact, Record
from lifelong_edit.timeline import Timeline

Start = Callable[..., Timeline]
Batch = Callable[..., list[Fact]]
Gate = Callable[..., dict[str, Any]]


@pytest.fixture
def filled(start_store: Start, tmp_path: Path, batch: Batch, lenient: Gate) -> Callable[..., Timeline]:
    """A store with the batches of the numbers given, one step each."""

    def fill(name: str, *numbers: int, **settings: Any) -> Timeline:
        timeline = start_store(tmp_path / name, reconsolidation_passes=3, **settings)
        for number in numbers:
            timeline.apply(batch(number), gate=lenient)
        return timeline

    return fill


def test_what_is_left_is_a_store_that_never_had_them(filled: Callable[..., Timeline], batch: Batch) -> None:
    gone = [batch(0)[1], batch(2)[0]]
    with filled("long", 0, 1, 2) as timeline:
        step = timeline.retract([fact.digest for fact in gone], reason="withdrawn")
        assert (step.step, step.kind, step.parent, step.reason) == (4, "retract", 3, "withdrawn")
        assert set(step.superseded) == {fact.digest for fact in gone}
        assert {f.digest for f in timeline.facts()} == {f.digest for n in range(3) for f in batch(n)} - set(
            step.superseded
        )
        assert {f.digest for f in timeline.facts("retracted")} == set(step.superseded)
        assert timeline.facts("superseded") == []
        status = timeline.status()
        assert (status["live_facts"], status["retracted"], status["superseded"]) == (7, 2, 0)
    with filled("short") as other:
        for fact in [f for n in (2, 0, 1) for f in batch(n) if f not in gone]:
            other.apply([fact], gate=lambda *_: {})
        again = other.reconsolidate(guard=False)
        assert again.weights_digest == step.weights_digest
        assert again.live_digest == step.live_digest


def test_a_retraction_is_rolled_back_and_gone_on_from(
    filled: Callable[..., Timeline], batch: Batch, lenient: Gate, tmp_path: Path
) -> None:
    with filled("plain", 0, 1) as timeline:
        before = timeline.show(2)
        step = timeline.retract([batch(0)[0]])
        back = timeline.rollback(2)
        assert (back.weights_digest, back.live_digest) == (before.weights_digest, before.live_digest)
        assert timeline.facts("retracted") == []
        timeline.rollback(step.step)
        wanted = timeline.apply(batch(2), gate=lenient)
        assert timeline.at(step.step).facts() == [*batch(0)[1:], *batch(1)]
    with Timeline.open(tmp_path / "plain") as opened:  # from the log alone
        opened.rollback(step.step)
        found = opened.apply(batch(2), gate=lenient, again=True)
        assert (found.weights_digest, found.live_digest) == (wanted.weights_digest, wanted.live_digest)


def test_what_was_superseded_comes_back_if_asked_for(
    filled: Callable[..., Timeline], fact: Callable[..., Fact], batch: Batch, lenient: Gate
) -> None:
    first, second, third = fact(1, "Paris"), fact(1, "London"), fact(1, "Warsaw")
    with filled("store", 1) as timeline:
        for version in (first, second):
            timeline.apply([version], gate=lenient)
        assert first not in timeline.facts()
        plain = timeline.retract([second])
        assert first not in timeline.facts()
        timeline.rollback(plain.step - 1)
        revived = timeline.retract([second.digest[:16]], revive=True)
        assert revived.added == (first.digest,)
        # Measured before and after on what was in force at both: the one that came back was not forgotten before.
        guard = revived.report["guard"]
        assert guard["before"]["asked"] == guard["after"]["asked"] == len(batch(1))
        assert first in timeline.facts()
        assert second in timeline.facts("retracted")
        # A fact that another one answers by now stays away.
        timeline.apply([third], gate=lenient)
        assert first not in timeline.facts()
        timeline.apply([second], again=True, gate=lenient)
        assert second not in timeline.facts("retracted")
        kept = timeline.retract([second], revive=True)
        assert kept.added == (third.digest,)


def test_what_a_revived_fact_had_superseded_comes_back_in_its_turn(
    filled: Callable[..., Timeline], fact: Callable[..., Fact], lenient: Gate
) -> None:
    versions = [fact(1, target) for target in ("Paris", "London", "Warsaw")]
    with filled("store", 1) as timeline:
        for version in versions:
            timeline.apply([version], gate=lenient)
        for earlier, later in ((versions[1], versions[2]), (versions[0], versions[1])):
            step = timeline.retract([later], revive=True)
            assert step.added == (earlier.digest,)
            # It is answered as before, and not as by the base model, because it was asked to come back.
            assert step.report["as_base"]["retracted"]["asked"] == 0


def test_without_a_fact_left_it_is_the_base(filled: Callable[..., Timeline], batch: Batch, lenient: Gate) -> None:
    with filled("store", 0) as timeline:
        step = timeline.retract(batch(0))
        assert step.weights_digest == timeline.show(0).weights_digest
        assert timeline.facts() == []
        assert step.report["as_base"]["retracted"] == {"asked": 3, "same": 3}
        assert timeline.history().retention_left(timeline.head) == 1.0
        timeline.apply(batch(1), gate=lenient)
        assert len(timeline.facts()) == 3


def test_a_retracted_record_is_not_taught_again_by_its_file(
    filled: Callable[..., Timeline], batch: Batch, placed: Callable[..., list[Record]], lenient: Gate
) -> None:
    with filled("store", 1) as timeline:
        timeline.apply(placed(batch(0)), gate=lenient)
        timeline.retract([batch(0)[0]])
        head = timeline.head
        assert timeline.apply(placed(batch(0)), gate=lenient).step == head
        assert timeline.apply(placed(batch(0), "b"), gate=lenient).step == head, "nor by another"
        again = timeline.apply(placed(batch(0), "b"), again=True, gate=lenient)
        assert again.added == (batch(0)[0].digest,)
        assert timeline.facts("retracted") == []


def test_unedited_neighbours_are_asked_beside_them(
    filled: Callable[..., Timeline], batch: Batch, lenient: Gate
) -> None:
    from lifelong_edit.facts import Probe

    probes = (
        Probe("The capital of Elsewhere is", "Paris", "Elsewhere"),
        Probe("The capital of Paris 0 is", None, "Paris 0"),
    )
    with filled("store", 1) as timeline:
        import msgspec

        told = msgspec.structs.replace(batch(0)[0], locality=probes)
        timeline.apply([told], gate=lenient)
        found = timeline.retract([told]).report["as_base"]
        assert found["retracted"]["asked"] == 1
        assert found["unedited"]["asked"] == 1, "a retracted subject is nobody's neighbour"


def test_what_was_superseded_is_taken_back_for_good(
    filled: Callable[..., Timeline], fact: Callable[..., Fact], lenient: Gate
) -> None:
    old, new, other = fact(1, "Paris"), fact(1, "London"), fact(2, "Paris")
    with filled("store") as timeline:
        for one in (old, other, new):
            timeline.apply([one], gate=lenient)
        assert timeline.facts("superseded") == [old]
        step = timeline.retract([old.digest])
        assert step.superseded == (old.digest,) and {f.digest for f in timeline.facts()} == {new.digest, other.digest}
        assert timeline.facts("retracted") == [old] and step.report["as_base"]["retracted"]["asked"] == 0
        again = timeline.retract([new.digest], revive=True)
        assert again.added == () and timeline.facts() == [other]
        with pytest.raises(UsageError, match="names no fact in force or superseded"):
            timeline.retract([old.digest])


@pytest.mark.parametrize("name", ["", "zz", "0" * 64])
def test_names_of_no_live_fact(
    filled: Callable[..., Timeline], batch: Batch, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with filled("store", *range(5)) as timeline:
        for wrong in ([name], [], [batch(0)[0].digest, name]):
            with pytest.raises(UsageError, match="expected"):
                timeline.retract(wrong)
        first = sorted(f.digest for f in timeline.facts())
        with pytest.raises(UsageError, match="too short"):
            timeline.retract([first[0][:3]])
        with monkeypatch.context() as shorter:
            shorter.setattr("lifelong_edit.timeline.history.SHORTEST", 1)
            shared = next(a[0] for a, b in itertools.pairwise(first) if a[0] == b[0])
            with pytest.raises(UsageError, match="begins the digests of"):
                timeline.retract([shared])
        gone = timeline.retract([first[0]])
        with pytest.raises(UsageError, match="names no fact in force"):
            timeline.retract([first[0]])
        assert timeline.head == gone.step
