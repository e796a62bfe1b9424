"""A stream that is reconsolidated by a policy: when, and the same wherever a run was cut off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from lifelong_edit.facts import read_facts
from lifelong_edit.policies import EveryNSteps, FixedSize, Geometric, ReconsolidationPolicy, Retention
from lifelong_edit.scheduler import BatchEvent, ReconsolidationEvent, Scheduler
from lifelong_edit.timeline import Timeline

NewStore = Callable[[str], Path]
Write = Callable[[str, Sequence[tuple[int, str]]], str]
Event = BatchEvent | ReconsolidationEvent
CITIES = ("Paris", "London", "Warsaw")


@pytest.fixture(autouse=True)
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guard without objections: a model with random weights is no judge of text."""
    objecting(monkeypatch, False)


def objecting(monkeypatch: pytest.MonkeyPatch, objects: bool) -> None:
    found = ["it is Monday"] if objects else []
    monkeypatch.setattr("lifelong_edit.timeline.solving.objections", lambda before, after: found)


@pytest.fixture
def path(write_stream: Write) -> str:
    """Nine facts in a file."""
    return write_stream("a.jsonl", [(number, CITIES[number % 3]) for number in range(9)])


def stream(
    store: Path, path: str, policy: ReconsolidationPolicy | None, *, stop: int | None = None, **options: Any
) -> tuple[Scheduler, list[Event]]:
    """Batches of one; as if killed right after event number `stop`."""
    with Timeline.open(store) as timeline:
        scheduler = Scheduler(timeline, batching=FixedSize(1), reconsolidation=policy)
        return scheduler, list(islice(scheduler.run(read_facts([path]), **options), stop))


def log(store: Path) -> list[tuple[str, str]]:
    with Timeline.open(store, read_only=True) as timeline:
        return [(record.kind, record.weights_digest) for record in timeline.log()]


def kinds(store: Path) -> str:
    """The log in letters: i(nit), e(dit), r(econsolidate), b(ack), f: refused."""
    letters = {"rollback": "b", "refused": "f"}
    return "".join(letters.get(kind, kind[0]) for kind, _ in log(store))


@pytest.mark.parametrize(
    ("policy", "wanted"),
    [
        (None, "ieeeeeeeee"),
        (EveryNSteps(3), "ieeereeereeer"),
        (Geometric(), "ieeeereeeere"),
        (Retention(1), "iereeeeeeee"),  # a model of chance numbers answers nothing, and nothing can be lost of that
    ],
)
def test_reconsolidation_by_policy(
    new_store: NewStore, path: str, policy: ReconsolidationPolicy | None, wanted: str
) -> None:
    store = new_store("a")
    scheduler, events = stream(store, path, policy)
    assert kinds(store) == wanted
    assert "".join("r" if isinstance(e, ReconsolidationEvent) else "e" for e in events) == wanted[1:]
    assert [e.step for e in events] == list(range(1, len(wanted)))
    assert [e.weights_digest for e in events] == [digest for _, digest in log(store)[1:]]
    summary = scheduler.summary
    assert (summary.batches, summary.facts, len(summary.steps)) == (9, 9, 9)
    assert (summary.reconsolidations, summary.refused) == (wanted.count("r"), 0)
    assert summary.seconds == pytest.approx(sum(e.seconds for e in events))
    # Again, with nothing left to do.
    assert stream(store, path, policy)[0].summary.reconsolidations == 0
    assert kinds(store) == wanted


def test_killed_between_an_edit_and_its_reconsolidation(new_store: NewStore, path: str) -> None:
    """Each event is handed out before the policy is asked about it: a run that ends there is one that was killed."""
    whole, killed = new_store("whole"), new_store("killed")
    stream(whole, path, Geometric())
    assert kinds(whole) == "ieeeereeeere"
    for stop in (4, 9):
        stream(killed, path, Geometric(), stop=stop)
    assert kinds(killed) == "ieeeereeee"  # both times before what was due
    _, events = stream(killed, path, Geometric())
    assert isinstance(events[0], ReconsolidationEvent)
    assert log(killed) == log(whole)


def test_an_interrupt_in_the_middle_of_a_reconsolidation(new_store: NewStore, path: str) -> None:
    whole, cut = new_store("whole"), new_store("cut")
    stream(whole, path, EveryNSteps(4))

    def interrupt(phase: str) -> None:
        raise KeyboardInterrupt(phase)

    with Timeline.open(cut) as timeline:
        scheduler = Scheduler(timeline, batching=FixedSize(1), reconsolidation=EveryNSteps(4), say=interrupt)
        with pytest.raises(KeyboardInterrupt, match="pass 1 over 4 facts"):
            list(scheduler.run(read_facts([path])))
    assert kinds(cut) == "ieeee"
    stream(cut, path, EveryNSteps(4))
    assert log(cut) == log(whole)


def test_a_refused_one_is_not_tried_again_at_once(
    new_store: NewStore, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store("a")
    objecting(monkeypatch, True)
    scheduler, events = stream(store, path, EveryNSteps(3))
    assert kinds(store) == "ieeefeeefeeef"
    assert (scheduler.summary.reconsolidations, scheduler.summary.refused) == (0, 3)
    refused = [e for e in events if isinstance(e, ReconsolidationEvent)]
    assert all(e.refused and e.report["objections"] == ["it is Monday"] for e in refused)
    assert stream(store, path, EveryNSteps(3))[0].summary.refused == 0
    plain = new_store("plain")
    stream(plain, path, None)
    assert [step for step in log(store) if step[0] == "edit"] == [step for step in log(plain) if step[0] == "edit"]


def test_a_rollback_takes_its_steps_out_of_the_count(new_store: NewStore, path: str, write_stream: Write) -> None:
    store = new_store("a")
    with Timeline.open(store) as timeline:
        counts = timeline.history().edits
        batches = [[record.fact] for record in read_facts([path])]
        assert counts(0) == (0, 0)
        for batch in batches[:3]:
            timeline.apply(batch)
        assert counts(3) == (3, 0)
        assert timeline.reconsolidate().step == 4
        timeline.apply(batches[3])
        assert (counts(4), counts(5), counts(3)) == ((0, 3), (1, 3), (3, 0))
        timeline.rollback(4)
        assert counts(timeline.head) == (0, 3)
        timeline.rollback(2)
        timeline.apply(batches[4])
        assert counts(timeline.head) == (3, 0)
    stream(store, write_stream("b.jsonl", [(99, "Paris")]), EveryNSteps(4))
    assert kinds(store)[-2:] == "er"


def test_a_refusal_counts_at_the_state_that_it_left(
    new_store: NewStore, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    objecting(monkeypatch, True)
    with Timeline.open(new_store("a")) as timeline:
        counts = timeline.history().edits
        for record in list(read_facts([path]))[:2]:
            timeline.apply([record.fact])
        timeline.reconsolidate()
        assert counts(2) == counts(3) == (0, 2)
        timeline.rollback(1)
        assert counts(timeline.head) == (1, 0)
        timeline.rollback(3)
        assert counts(timeline.head) == (0, 2)


def test_nothing_is_reconsolidated_in_a_dry_run(new_store: NewStore, path: str) -> None:
    store = new_store("a")
    stream(store, path, None, stop=5)
    with Timeline.open(store, read_only=True) as timeline:
        scheduler = Scheduler(timeline, batching=FixedSize(1), reconsolidation=EveryNSteps(1))
        events = list(scheduler.run(read_facts([path]), dry_run=True))
    assert len(events) == 9
    assert not any(isinstance(event, ReconsolidationEvent) for event in events)


@pytest.mark.parametrize(("reason", "wanted"), [(None, "every:4"), ("week 12", "week 12")])
def test_the_step_says_why(new_store: NewStore, path: str, reason: str | None, wanted: str) -> None:
    store = new_store("a")
    stream(store, path, EveryNSteps(4), stop=5, reason=reason)
    with Timeline.open(store, read_only=True) as timeline:
        assert (timeline.show(5).kind, timeline.show(5).reason) == ("reconsolidate", wanted)
