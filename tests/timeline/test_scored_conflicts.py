"""Conflicts that only keys and wording tell, in a store: by the scorer that `init` fixed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lifelong_edit.bench import Fixed
from lifelong_edit.facts import Fact
from lifelong_edit.policies.scoring import CONFLICTS
from lifelong_edit.timeline import Timeline
from lifelong_edit.timeline.defaults import default_scorer
from lifelong_edit.timeline.solving import NEIGHBOURS

Start = Callable[..., Timeline]
Make = Callable[..., Fact]
Gate = Callable[..., dict[str, Any]]


@pytest.fixture
def scored(start_store: Start, tmp_path: Path) -> Callable[[float], Timeline]:
    """A store whose scorer says nearly always (10) or hardly ever (-10) that two facts about a subject are one."""

    def make(intercept: float, **changes: Any) -> Timeline:
        folder = tmp_path / f"scorer{intercept}"
        folder.mkdir()
        scorer = msgspec.structs.replace(default_scorer(), coefficients=(0.0, 0.0), intercept=intercept)
        (folder / CONFLICTS).write_bytes(msgspec.json.encode(scorer))
        return start_store(tmp_path / f"store{intercept}", scorer=folder, **changes)

    return make


def again(fact: Fact, target: str) -> Fact:
    """The same question in words that no record has, and without a relation."""
    return Fact(subject=fact.subject, prompt=f"Those who rule {fact.subject} do so from", target=target)


def test_a_store_keeps_the_scorer_that_it_was_made_with(
    scored: Callable[..., Timeline], start_store: Start, tmp_path: Path
) -> None:
    with scored(10.0) as timeline, start_store(tmp_path / "plain") as plain:
        found = Fixed.of(timeline.fixed()).scorer
        assert found is not None
        assert (found.intercept, found.features) == (10.0, default_scorer().features)
        assert Fixed.of(plain.fixed()).scorer == default_scorer()
        assert timeline.show(0).fixed != plain.show(0).fixed, "it is part of what decides each digest"


def test_a_contradiction_in_other_words_is_superseded(
    scored: Callable[..., Timeline], batch: Callable[..., list[Fact]], lenient: Gate
) -> None:
    """Whatever the scorer says of it: the same store with another one keeps both."""
    for intercept, kinds in ((10.0, ["contradiction"]), (-2.0, ["unrelated"]), (-10.0, [])):
        with scored(intercept) as timeline:
            facts = batch(0, size=2 * NEIGHBOURS)
            timeline.apply(facts, gate=lenient)
            new = again(facts[3], "Rome")
            index, keys = timeline._solve().index(), timeline.bench().conflict_keys([new.prompt])
            assert facts[3].digest not in dict(index.search(keys, NEIGHBOURS)[0]), "by its subject, not by its key"
            record = timeline.apply([new], gate=lenient)
            found = record.report["conflicts"]
            assert [conflict["kind"] for conflict in found] == kinds
            assert record.superseded == ((facts[3].digest,) if intercept > 0 else ())
            assert all(0 < conflict["probability"] < 1 for conflict in found)


def test_in_one_batch_the_later_record_holds(scored: Callable[..., Timeline], fact: Make, lenient: Gate) -> None:
    with scored(10.0) as timeline:
        first, second = (
            again(fact(0), "Rome"),
            Fact(subject=fact(0).subject, prompt="Ministers of Paris 0 sit in", target="Oslo"),
        )
        record = timeline.apply([first, fact(1), second], gate=lenient)
        assert record.added == (fact(1).digest, second.digest)
        assert [(skip.fact, skip.reason) for skip in timeline.sieve([first]).skips] == []
        (found,) = record.report["conflicts"]
        assert (found["kind"], found["new"], found["old"]) == ("contradiction", second.digest, first.digest)
        assert record.report["skipped"] == {"conflict": 1}
