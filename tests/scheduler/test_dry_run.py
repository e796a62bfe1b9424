"""A dry run says what the run would do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lifelong_edit.errors import StepRefusedError
from lifelong_edit.facts import read_facts
from lifelong_edit.policies import FixedSize
from lifelong_edit.scheduler import BatchEvent, Scheduler
from lifelong_edit.timeline import Timeline

NewStore = Callable[[str], Path]
Write = Callable[[str, Sequence[tuple[int, str]]], str]
POLICIES = ("supersede", "reject", "keep", "quarantine")


def events(store: Path, *files: str, dry_run: bool = False, again: bool = False, **how: Any) -> list[BatchEvent]:
    with Timeline.open(store, read_only=dry_run) as timeline:
        run = Scheduler(timeline, batching=FixedSize(2), **how).run(read_facts(files), again=again, dry_run=dry_run)
        return [event for event in run if isinstance(event, BatchEvent)]


def told(event: BatchEvent) -> dict[str, Any]:
    """What a dry run and the run have to agree on: all but times, what is measured after, and the forecast's kind."""
    report = {name: event.report.get(name) for name in ("conflicts", "gate", "in_words_of", "skipped", "reviewed")}
    figures = ("batch", "records", "facts", "skipped", "turned_down", "untaken")
    return {name: getattr(event, name) for name in figures} | report


@pytest.mark.parametrize("policy", POLICIES)
def test_what_meets_within_the_input(new_store: NewStore, write_stream: Write, policy: str) -> None:
    store = new_store("a")
    events(store, write_stream("before.jsonl", [(0, "Paris"), (1, "Paris")]))
    one = write_stream("one.jsonl", [(1, "London"), (2, "Paris"), (3, "Paris"), (3, "London"), (2, "Paris")])
    two = write_stream("two.jsonl", [(3, "Warsaw"), (1, "Paris"), (3, "London"), (5, "Paris")])
    dry = events(store, one, two, dry_run=True, conflicts=policy)
    found = events(store, one, two, conflicts=policy)
    assert [told(event) for event in dry] == [told(event) for event in found]
    met = [conflict["action"] for event in dry for conflict in event.report.get("conflicts", ())]
    assert met.count(policy) == {"supersede": 5, "reject": 4, "keep": 4, "quarantine": 3}[policy]
    assert all(event.step is None and event.weights_digest is None for event in dry)


def test_what_was_turned_down_or_reviewed(new_store: NewStore, write_stream: Write) -> None:
    store = new_store("a")
    events(store, write_stream("before.jsonl", [(0, "Paris"), (1, "Paris"), (2, "Paris")]))
    with Timeline.open(store) as timeline:
        timeline.retract([timeline.facts()[0]])
    files = [
        write_stream("one.jsonl", [(0, "Paris"), (4, "Rome")]),
        write_stream("two.jsonl", [(0, "Paris"), (0, "Rome")]),
    ]
    for again in (False, True):
        dry = events(store, *files, dry_run=True, again=again)
        twin = new_store(f"{again}")
        events(twin, write_stream("before.jsonl", [(0, "Paris"), (1, "Paris"), (2, "Paris")]))
        with Timeline.open(twin) as timeline:
            timeline.retract([timeline.facts()[0]])
        assert [told(event) for event in dry] == [told(event) for event in events(twin, *files, again=again)]
        assert sum(len(event.turned_down) for event in dry) == (0 if again else 2)


def test_a_refused_batch_leaves_all_as_it_was(
    new_store: NewStore, write_stream: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, path = new_store("a"), write_stream("a.jsonl", [(0, "Paris"), (1, "Paris"), (2, "Paris"), (0, "London")])
    from lifelong_edit.judging import gate

    passing, seen = gate.check, []

    def refuse_the_first(bench: Any, state: Any, proposal: Any, facts: Any) -> Any:
        seen.append(len(state.live))
        if len(seen) == 1:
            raise StepRefusedError("the batch was refused: no reason")
        return passing(bench, state, proposal, facts)

    monkeypatch.setattr(gate, "check", refuse_the_first)
    first, second = events(store, path, dry_run=True)
    assert (first.refused, second.refused) == ("the batch was refused: no reason", None)
    assert (seen, second.facts, second.report["conflicts"]) == ([0, 0], 2, [])
