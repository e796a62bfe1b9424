"""The key index follows the live facts, whatever its kind; conflicts do not depend on its history."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lifelong_edit.facts import Fact
from lifelong_edit.timeline import Timeline

Start = Callable[..., Timeline]


def steps(store: Path) -> list[tuple[str, Any]]:
    with Timeline.open(store, read_only=True) as timeline:
        return [(record.weights_digest, record.report.get("conflicts")) for record in timeline.log()]


def edit(timeline: Timeline, batches: list[list[Fact]], lenient: Any) -> None:
    for batch in batches:
        timeline.apply(batch, gate=lenient)


def test_the_same_digests_with_either_kind_and_after_reopening(
    start_store: Start,
    tmp_path: Path,
    batch: Callable[..., list[Fact]],
    fact: Callable[..., Fact],
    lenient: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batches = [batch(0), batch(1), [fact(0, "Sydney"), fact(7)], [fact(0, "Oslo")], batch(3)]
    with start_store(tmp_path / "flat") as timeline:
        edit(timeline, batches, lenient)
        assert timeline._solve().index().kind == "flat"
    monkeypatch.setattr("lifelong_edit.policies.indexing.REDUCED_FROM", 4)
    monkeypatch.setattr("lifelong_edit.stores.index.DIRECTIONS", 3)
    with start_store(tmp_path / "reduced") as timeline:
        edit(timeline, batches[:2], lenient)
    with Timeline.open(tmp_path / "reduced") as timeline:
        timeline.bench()
        timeline.apply(batch(9), gate=lenient)
        timeline.rollback(2)  # the index has had other facts, and lost them again
        edit(timeline, batches[2:], lenient)
        index = timeline._solve().index()
        assert index.kind == "reduced"
        assert sorted(index.facts) == sorted(f.digest for f in timeline.facts())
    found = steps(tmp_path / "reduced")
    assert [*found[:3], *found[5:]] == steps(tmp_path / "flat")
    assert any(conflicts for _, conflicts in found)


def test_identities_follow_the_live_facts(
    timeline: Timeline, batch: Callable[..., list[Fact]], fact: Callable[..., Fact], lenient: Callable[..., Any]
) -> None:
    """What was superseded is no conflict any longer; what supersedes is one at once."""
    timeline.apply([fact(0, "Paris"), fact(1)], gate=lenient)
    for target, before in (("Vienna", "Paris"), ("Oslo", "Vienna")):
        step = timeline.apply([fact(0, target)], gate=lenient)
        exact = [c["old"] for c in step.report["conflicts"] if c["probability"] == 1]
        assert exact == [fact(0, before).digest]
    timeline.rollback(1)
    step = timeline.apply([fact(0, "Bergen")], gate=lenient)
    assert [c["old"] for c in step.report["conflicts"] if c["probability"] == 1] == [fact(0, "Paris").digest]
