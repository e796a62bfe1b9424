"""The planted stream: as many plants of each kind as it says, each after what it meets and unlike it as it says."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.bench_conflicting_stream import KINDS, plant
from benchmarks.bench_streams import Stream
from lifelong_edit.facts import Fact
from lifelong_edit.policies import identities


def fact(number: int) -> Fact:
    return Fact(
        subject=f"s{number}",
        relation=f"r{number % 2}",
        prompt=f"s{number} is in",
        target=f"t{number % 5}",
        target_true="home",
        rephrases=(f"s{number} lies in",),
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_plants_are_what_they_say(seed: int) -> None:
    facts = [fact(number) for number in range(42)]
    spare = {f.digest: (f"{f.subject} can be found in",) for f in facts}
    planted = plant(Stream(facts, {}, []), spare, 6, 10, seed)
    assert len(planted.facts) == 60
    assert Counter(p.kind for p in planted.plants) == dict.fromkeys(KINDS, 6)
    assert len({p.old.digest for p in planted.plants}) == 18
    assert planted.rest.state.live.keys() == {f.digest for f in facts} - {p.old.digest for p in planted.plants}
    for p in planted.plants:
        first, *again = [i for i, f in enumerate(planted.facts) if f == p.old]
        came = again[0] if p.kind == "exact" else planted.facts.index(p.new)
        assert first // 10 < came // 10
        assert (p.new == p.old) == (p.kind == "exact")
        if p.kind == "exact":
            continue
        assert (p.new.target != p.old.target) == (p.kind == "contradiction")
        assert bool(set(identities(p.new)) & set(identities(p.old))) == p.named
    assert sum(p.named for p in planted.plants if p.kind != "exact") == 6
