"""Several threads on one timeline: what they ask for is done one after the other."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lifelong_edit.facts import Fact, Record
from lifelong_edit.stores import fsck
from lifelong_edit.timeline import Timeline
from lifelong_edit.timeline.view import View

Start = Callable[..., Timeline]
Batch = Callable[..., list[Fact]]
Place = Callable[..., list[Record]]
Gate = Callable[..., dict[str, Any]]
FREE = {"create", "open", "path", "settings", "lock"}
"""Neither what makes a timeline nor what never changes has to wait."""


def together(*calls: Callable[[], Any]) -> list[Any]:
    """What each call gives, all begun at the same moment in threads of their own."""
    gate = threading.Barrier(len(calls))

    def call(one: Callable[[], Any]) -> Any:
        gate.wait()
        return one()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(call, calls))


def applying(timeline: Timeline, batches: Sequence[Any], gate: Gate) -> list[Callable[[], Any]]:
    return [lambda batch=batch: timeline.apply(batch, gate=gate) for batch in batches]  # type: ignore[misc]


def test_three_threads_make_three_steps(start_store: Start, tmp_path: Path, batch: Batch, lenient: Gate) -> None:
    batches = [batch(number) for number in range(3)]
    with start_store(tmp_path / "together") as timeline:
        steps = together(*applying(timeline, batches, lenient))
        assert sorted(step.step for step in steps) == [1, 2, 3]
        log = timeline.log()
    assert fsck(tmp_path / "together").sound
    came = [next(b for b in batches if b[0].digest in record.added) for record in log[1:]]
    with start_store(tmp_path / "serial") as timeline:
        for facts, record in zip(came, log[1:], strict=True):
            found = timeline.apply(facts, gate=lenient)
            assert (found.weights_digest, found.live_digest) == (record.weights_digest, record.live_digest)


def test_the_same_batch_is_taught_once(timeline: Timeline, batch: Batch, placed: Place, lenient: Gate) -> None:
    """Also where each thread has sieved it before any has applied it."""
    sieved = [timeline.sieve(placed(batch(0))) for _ in range(3)]
    steps = together(*applying(timeline, sieved, lenient))
    assert (timeline.head, {step.step for step in steps}) == (1, {1})
    assert sorted(left.counts().get("consumed", 0) for left in sieved) == [0, 3, 3]


def test_asking_waits_for_the_state_that_it_asks(timeline: Timeline, batch: Batch, lenient: Gate) -> None:
    timeline.apply(batch(0), gate=lenient)
    prompts = [fact.prompt for fact in batch(0)]
    wanted = [timeline.at(1).ask(prompt) for prompt in prompts]

    def ask() -> list[str]:
        return [timeline.at(1).ask(prompt) for prompt in prompts]

    asked, _, moved, other = together(
        ask, *applying(timeline, [batch(1), batch(2)], lenient), lambda: timeline.tag("one", 1)
    )
    assert asked == wanted
    assert {moved.kind, other.kind} == {"edit", "tag"}
    assert len(timeline.log()) == 5


@pytest.mark.parametrize("kind", [Timeline, View])
def test_no_method_is_left_out(kind: type) -> None:
    left = []
    for name in {name for name in dir(kind) if not name.startswith("_")} - FREE:
        found = inspect.getattr_static(kind, name)
        method = found.fget if isinstance(found, property) else found
        if callable(method) and not hasattr(method, "__wrapped__"):
            left.append(name)
    assert left == []
