"""Streams become steps: in batches that the input alone decides, once each, wherever a run was cut off."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lifelong_edit.errors import BadInputError, StepRefusedError
from lifelong_edit.facts import read_facts
from lifelong_edit.policies import FixedSize
from lifelong_edit.scheduler import Scheduler, Summary
from lifelong_edit.timeline import Timeline
from tests.warm import Running

NewStore = Callable[[str], Path]
Program = Callable[..., Running]
Write = Callable[[str, Sequence[tuple[int, str]]], str]
CITIES = ("Paris", "London", "Warsaw")


def pairs(count: int) -> list[tuple[int, str]]:
    return [(number, CITIES[number % 3]) for number in range(count)]


def stream(store: Path, *files: str, size: int = 3, **options: Any) -> Summary:
    with Timeline.open(store) as timeline:
        scheduler = Scheduler(timeline, batching=FixedSize(size), skip_bad=bool(options.pop("skip_bad", False)))
        for _ in scheduler.run(read_facts(files), **options):
            pass
        return scheduler.summary


def digests(store: Path) -> list[str]:
    with Timeline.open(store, read_only=True) as timeline:
        return [record.weights_digest for record in timeline.log()]


def targets(store: Path) -> dict[str, str]:
    with Timeline.open(store, read_only=True) as timeline:
        return {fact.subject: fact.target for fact in timeline.facts()}


def test_events_tell_what_became_of_each_batch(new_store: NewStore, write_stream: Write) -> None:
    store, path = new_store("a"), write_stream("a.jsonl", pairs(7))
    with Timeline.open(store) as timeline:
        scheduler = Scheduler(timeline, batching=FixedSize(3))
        events = list(scheduler.run(read_facts([path]), reason="why"))
        assert [(e.batch, e.step, e.records, e.facts) for e in events] == [(0, 1, 3, 3), (1, 2, 3, 3), (2, 3, 1, 1)]
        assert [e.weights_digest for e in events] == [r.weights_digest for r in timeline.log()[1:]]
        assert {r.reason for r in timeline.log()[1:]} == {"why"}
        assert all(set(e.untaken) <= e.batch_facts.keys() for e in events)
        assert scheduler.summary.steps == [1, 2, 3]
        assert scheduler.summary.facts == 7
        assert scheduler.summary.untaken == sum(len(e.untaken) for e in events)


def test_second_run_applies_nothing_and_needs_no_model(
    new_store: NewStore, write_stream: Write, tiny_gpt2: Path, tmp_path: Path
) -> None:
    store, path = new_store("a"), write_stream("a.jsonl", pairs(5))
    assert stream(store, path).steps == [1, 2]
    hidden = tiny_gpt2.rename(tmp_path / "hidden")
    try:
        again = stream(store, path)
    finally:
        hidden.rename(tiny_gpt2)
    assert (again.steps, again.skipped) == ([], {"consumed": 5})


def test_appended_file_applies_what_is_new(new_store: NewStore, write_stream: Write) -> None:
    store = new_store("a")
    stream(store, write_stream("a.jsonl", pairs(4)))
    longer = stream(store, write_stream("a.jsonl", pairs(6)))
    assert longer.skipped == {"live": 4}
    assert longer.facts == 2
    assert len(targets(store)) == 6


def test_a_to_b_to_a(new_store: NewStore, write_stream: Write) -> None:
    """A fact equal to a superseded one, from a new place, is news; within one file as well as over several."""
    store = new_store("one")
    one = stream(store, write_stream("one.jsonl", [(0, "Paris"), (0, "London"), (0, "Paris"), (1, "Warsaw")]))
    assert one.steps == [1, 2, 3]
    assert one.conflicts == {"contradiction": 2}
    assert targets(store) == {"Vienna 0": "Paris", "Vienna 1": "Warsaw"}
    store = new_store("three")
    for name, target in (("a", "Paris"), ("b", "London"), ("c", "Paris")):
        stream(store, write_stream(f"{name}.jsonl", [(0, target), (int(name, 16), "Warsaw")]))
        assert targets(store)["Vienna 0"] == target
    # The first file again: its places were consumed, so B or a later A is not undone by a rerun.
    assert stream(store, str(store.parent / "a.jsonl")).skipped == {"consumed": 2}


def test_rolled_back_records_need_again(new_store: NewStore, write_stream: Write) -> None:
    store, path = new_store("a"), write_stream("a.jsonl", pairs(6))
    stream(store, path)
    before = digests(store)
    with Timeline.open(store) as timeline:
        timeline.rollback(1)
    assert stream(store, path).skipped == {"consumed": 3, "rolled-back": 3}
    stream(store, path, again=True)
    assert digests(store)[-1] == before[2]


def test_dry_run_tries_every_batch_and_commits_nothing(new_store: NewStore, write_stream: Write) -> None:
    store, path = new_store("a"), write_stream("a.jsonl", pairs(5))
    with Timeline.open(store, read_only=True) as timeline:
        scheduler = Scheduler(timeline, batching=FixedSize(3))
        events = list(scheduler.run(read_facts([path]), dry_run=True))
    assert [(e.step, e.facts, e.report["gate"]["asked"]) for e in events] == [(None, 3, 3), (None, 2, 2)]
    assert digests(store) == digests(new_store("untouched"))


def test_record_that_the_model_cannot_take(new_store: NewStore, write_stream: Write) -> None:
    """Its batch is not applied; those before it are."""
    store, path = new_store("a"), write_stream("a.jsonl", [*pairs(4), (4, "Paris " * 80), (5, "Paris")])
    with pytest.raises(BadInputError, match=r"a\.jsonl:5: .*tokens"):
        stream(store, path)
    assert len(targets(store)) == 3
    rest = stream(store, path, skip_bad=True)
    assert (rest.facts, len(rest.bad)) == (2, 1)
    assert stream(store, path, skip_bad=True).facts == 0


def test_refused_batch_leaves_the_store_as_it_was(
    new_store: NewStore, write_stream: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, path = new_store("a"), write_stream("a.jsonl", pairs(6))
    with Timeline.open(store) as timeline:
        scheduler = Scheduler(timeline, batching=FixedSize(3))
        events = scheduler.run(read_facts([path]))
        next(events)
        weight = timeline.bench().loaded.modules[0]
        before = timeline.bench().loaded.model.get_submodule(weight.name).weight.clone()
        strict = timeline.bench().settings.replace(gate_min_taken=1.01)
        monkeypatch.setattr(timeline.bench(), "settings", strict)
        with pytest.raises(StepRefusedError, match="have taken"):
            next(events)
        assert timeline.head == 1
        assert timeline.bench().loaded.model.get_submodule(weight.name).weight.equal(before)
        monkeypatch.undo()
        again = list(Scheduler(timeline, batching=FixedSize(3)).run(read_facts([path])))
        assert [event.step for event in again] == [None, 2]


def test_killed_anywhere_and_started_again_gives_the_same_digests(
    program: Program, new_store: NewStore, write_stream: Write
) -> None:
    """SIGKILL at random moments, some of them in the middle of a batch; every step seen on stdout is there after it."""
    reference, store = new_store("reference"), new_store("killed")
    path = write_stream("a.jsonl", [*pairs(24), (0, "Warsaw"), (3, "London")])
    run_to_the_end(program, reference, path)
    wanted = digests(reference)
    assert len(wanted) == 14
    chance = random.Random(5)
    for _ in range(3):
        with program("stream", path, "--store", store, "--batch-size", 2) as process:
            seen = [process.stdout.readline() for _ in range(chance.randint(2, 4))]
            time.sleep(chance.random() * 0.1)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        acknowledged = [int(row.split()[0]) for row in seen[1:] if row.split()[0].isdigit()]
        assert len(digests(store)) - 1 >= max(acknowledged, default=0)
    run_to_the_end(program, store, path)
    assert digests(store) == wanted


def run_to_the_end(program: Program, store: Path, path: str) -> None:
    with program("stream", path, "--store", store, "--batch-size", 2) as process:
        process.communicate()
        assert process.returncode == 0
