"""How long facts survive: by hand, and Kaplan and Meier's estimate by counting."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifelong_edit.eval.reports.survival import Spell, kaplan_meier, lost_facts, nearest_later, spells, split_by
from tests.reports.test_matrix import THREE, measured


def test_spells_by_hand() -> None:
    """Of batch 1: 1-0 is asked four times and right; 1-1 fails after two batches, 1-2 and 1-3 after one."""
    found = {spell.fact: (spell.length, spell.ended) for spell in spells(measured(THREE))}
    assert found == {
        "1-0": (2, False), "1-1": (2, True), "1-2": (1, True), "1-3": (1, True),
        "2-0": (1, False), "2-1": (1, True), "3-0": (0, False), "3-1": (0, False),
    }  # fmt: skip
    never = spells(measured({1: {1: [0, 1]}, 2: {1: [1, 1], 2: [1]}}))
    assert [spell.fact for spell in never] == ["1-1", "2-0"]  # what did not take has nothing to lose


def test_kaplan_and_meier_by_hand() -> None:
    """At age 1 six are at risk and three are lost, at age 2 two and one."""
    found = kaplan_meier(spells(measured(THREE)))
    assert (found.ages, found.at_risk, found.lost) == ((0, 1, 2), (8, 6, 2), (0, 3, 1))
    assert found.share == pytest.approx((1, 0.5, 0.25))
    assert kaplan_meier([]).ages == ()


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=30))
def test_without_censoring_it_is_the_share_that_is_left(drawn: list[tuple[int, bool]]) -> None:
    everyone = [Spell(str(i), 0, length, True) for i, (length, _) in enumerate(drawn)]
    found = kaplan_meier(everyone)
    for age, share in zip(found.ages, found.share, strict=True):
        assert share == pytest.approx(sum(length > age for length, _ in drawn) / len(drawn))
    some = kaplan_meier([Spell(str(i), 0, length, ended) for i, (length, ended) in enumerate(drawn)])
    assert all(a >= b - 1e-12 for a, b in zip(some.share, found.share, strict=True))


def test_lost_is_what_was_answered_and_is_not_any_more() -> None:
    found = lost_facts(measured(THREE), ["1-3", "1-0", "2-1"])
    assert [(one.then.fact, one.asked_at, one.now.generated) for one in found] == [("1-3", 4, False)]
    assert [one.then.fact for one in lost_facts(measured({k: THREE[k] for k in (1, 2, 3)}), ["1-1", "1-2", "2-1"])] == [
        "1-1",
        "1-2",
        "2-1",
    ]


def test_nearness_looks_at_later_facts_alone() -> None:
    generator = np.random.default_rng(0)
    keys = {str(i): generator.normal(size=5).astype(np.float32) for i in range(9)}
    keys = {name: key / np.linalg.norm(key) for name, key in keys.items()}
    taught = {name: 1 + int(name) // 3 for name in keys}
    found = nearest_later(keys, taught)
    assert sorted(found) == ["0", "1", "2", "3", "4", "5"]
    for name, value in found.items():
        later = [float(keys[name] @ key) for other, key in keys.items() if taught[other] > taught[name]]
        assert value == pytest.approx(max(later), abs=1e-6)
    assert nearest_later(keys, taught, {"0"}) == pytest.approx({"0": found["0"]})
    assert nearest_later(keys, taught, set()) == {}
    assert nearest_later({}, {}) == {} and nearest_later(keys, {"0": 1}) == {}


def test_strata_are_parted_at_the_median() -> None:
    lives = [Spell(str(i), 1, i, False) for i in range(4)]
    middle, far, near = split_by(lives, {"0": 0.1, "1": 0.9, "2": 0.5, "3": 0.7, "9": 1.0})
    assert middle == pytest.approx(0.6)
    assert ([s.fact for s in far], [s.fact for s in near]) == (["0", "2"], ["1", "3"])
    assert math.isnan(split_by(lives, {"0": 1.0})[0])
