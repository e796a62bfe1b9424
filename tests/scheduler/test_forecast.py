"""A stream that is reconsolidated by forecast: before a batch, by what is known then, and the same after a kill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from lifelong_edit.facts import read_facts
from lifelong_edit.policies import FixedSize, Forecast, ReconsolidationPolicy, Standing
from lifelong_edit.scheduler import BatchEvent, ReconsolidationEvent, Scheduler
from lifelong_edit.timeline import Timeline

NewStore = Callable[[str], Path]
Write = Callable[[str, Sequence[tuple[int, str]]], str]
Event = BatchEvent | ReconsolidationEvent
CITIES = ("Paris", "London", "Warsaw")


@pytest.fixture(autouse=True)
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guard without objections: a model with random weights is no judge of text."""
    monkeypatch.setattr("lifelong_edit.timeline.solving.objections", lambda before, after: [])


@pytest.fixture
def path(write_stream: Write) -> str:
    """Eight facts in a file."""
    return write_stream("a.jsonl", [(number, CITIES[number % 3]) for number in range(8)])


def stream(store: Path, path: str, policy: ReconsolidationPolicy | None, *, stop: int | None = None) -> list[Event]:
    """Batches of two; as if killed right after event number `stop`."""
    with Timeline.open(store) as timeline:
        scheduler = Scheduler(timeline, batching=FixedSize(2), reconsolidation=policy)
        return list(islice(scheduler.run(read_facts([path])), stop))


def log(store: Path) -> list[tuple[str, str]]:
    with Timeline.open(store, read_only=True) as timeline:
        return [(record.kind, record.weights_digest) for record in timeline.log()]


def kinds(store: Path) -> str:
    return "".join(kind[0] for kind, _ in log(store))


def forecasts(store: Path) -> list[dict[str, Any]]:
    """What each edit logged."""
    with Timeline.open(store, read_only=True) as timeline:
        return [record.report["forecast"] for record in timeline.log() if record.kind == "edit"]


def test_each_step_logs_what_was_forecast_of_it(new_store: NewStore, path: str) -> None:
    store = new_store("a")
    stream(store, path, None)
    logged = forecasts(store)
    assert [(found["by"], found["live"]) for found in logged] == [("keys", 2 * number) for number in range(4)]
    assert logged[0]["forgotten"] == logged[0]["share"] == 0
    assert all(0 < found["forgotten"] < found["live"] for found in logged[1:])
    with Timeline.open(store, read_only=True) as timeline:
        status = timeline.status()
        assert status["forecast"] == logged[-1]["share"]
        assert status["forecast_since"] == pytest.approx(
            sum(found["forgotten"] for found in logged) / logged[-1]["live"]
        )
        assert timeline.history().forecast(0) == {"forecast": None, "forecast_since": 0.0}


def test_the_figure_before_is_the_one_that_is_logged(new_store: NewStore, path: str) -> None:
    batches = [list(read_facts([path]))[i : i + 2] for i in range(0, 8, 2)]
    with Timeline.open(new_store("a")) as timeline:
        for batch in batches:
            before = timeline.forecast(batch)
            assert before is not None
            told = before.pop("since")
            head = timeline.head
            assert timeline.apply(batch).report["forecast"] == before
            if before["live"]:
                assert told == pytest.approx(timeline.history().forgotten(head + 1) / before["live"])
            assert timeline.forecast(batch) is None, "nothing is left of it"


def test_due_before_the_batch_that_would_forget_too_much(new_store: NewStore, path: str) -> None:
    plain, store, killed = (new_store(name) for name in ("plain", "store", "killed"))
    stream(plain, path, None)
    second, third = forecasts(plain)[1:3]
    told = (second["forgotten"] + third["forgotten"]) / third["live"]
    assert told > max(second["share"], third["share"]) * 0.9
    events = stream(store, path, Forecast(told * 0.999))
    # Not before the second batch, nor before the fourth: the sum begins anew at the third.
    assert kinds(store)[:5] == "ieere"
    assert isinstance(events[2], ReconsolidationEvent)
    assert log(store)[:3] == log(plain)[:3]
    stream(plain_again := new_store("again"), path, Forecast(min(told * 1.001, 1)))
    assert kinds(plain_again)[:4] == "ieee"
    for stop in range(1, 4):  # before and after the reconsolidation, which is due once only
        stream(killed, path, Forecast(told * 0.999), stop=stop)
    stream(killed, path, Forecast(told * 0.999))
    assert log(killed) == log(store)
    # Again, with nothing left to do.
    assert all(event.step is None for event in stream(store, path, Forecast(1e-9)) if isinstance(event, BatchEvent))
    assert log(killed) == log(store)


def test_never_twice_without_an_edit_in_between(new_store: NewStore, path: str) -> None:
    store = new_store("a")
    stream(store, path, Forecast(1e-12))
    assert kinds(store) == "iererere", "before each batch but the first, and not after the last"


def test_asked_where_a_batch_is_at_hand(new_store: NewStore, path: str) -> None:
    """One that looks ahead before each batch that leaves something to edit; others at the start and after each edit."""

    class Listening:
        def __init__(self, looks_ahead: bool) -> None:
            self.looks_ahead = looks_ahead
            self.heard: list[str] = []

        def due(self, standing: Standing) -> bool:
            self.heard.append("-" if standing.forecast is None else "b")
            return False

    for looks_ahead, heard, again in ((True, "bbbb", ""), (False, "-----", "-")):
        store, policy = new_store(heard), Listening(looks_ahead)
        stream(store, path, policy)
        assert "".join(policy.heard) == heard
        policy.heard.clear()
        stream(store, path, policy)
        assert "".join(policy.heard) == again, "what was consumed is passed over"


def test_a_dry_run_forecasts_from_the_proposal(new_store: NewStore, path: str) -> None:
    store = new_store("a")
    stream(store, path, None, stop=3)
    with Timeline.open(store, read_only=True) as timeline:
        events = list(Scheduler(timeline, batching=FixedSize(2)).run(read_facts([path]), dry_run=True))
        live = {fact.digest for fact in timeline.facts()}
    (found,) = (event.report["forecast"] for event in events if isinstance(event, BatchEvent) and event.report)
    assert (found["by"], found["live"]) == ("change", 6)
    risks = [risk["probability"] for risk in found["at_risk"]]
    assert len(risks) == 5
    assert risks == sorted(risks, reverse=True)
    assert {risk["fact"] for risk in found["at_risk"]} < live
    assert sum(risks) < found["forgotten"] < 6


def test_what_is_replaced_is_not_at_risk(new_store: NewStore, path: str, write_stream: Write) -> None:
    store = new_store("a")
    stream(store, path, None)
    stream(store, write_stream("b.jsonl", [(0, "Nowhere"), (99, "Paris")]), None)
    with Timeline.open(store, read_only=True) as timeline:
        record = timeline.show(timeline.head)
    assert len(record.superseded) == 1
    assert record.report["forecast"]["live"] == 7
