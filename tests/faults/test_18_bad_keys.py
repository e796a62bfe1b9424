"""18. Duplicate ids, −1, NaN, no direction, a wrong width: refused by name before FAISS sees them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifelong_edit.errors import StoreError
from lifelong_edit.stores import KeyIndex, digest_bytes

WIDTH = 6
FACTS = [digest_bytes(bytes([number])) for number in range(12)]
BAD = {
    "NaN": [np.nan] + [1.0] * (WIDTH - 1),
    "infinity": [1.0] * (WIDTH - 1) + [np.inf],
    "no direction": [0.0] * WIDTH,
}


def source(facts: Sequence[str]) -> np.ndarray:
    return np.stack([np.random.default_rng(int(fact[:8], 16)).standard_normal(WIDTH) for fact in facts]).astype("f4")


def filled() -> tuple[KeyIndex, list[list[tuple[str, float]]]]:
    index = KeyIndex(WIDTH, source)
    index.add(FACTS[:8], source(FACTS[:8]))
    return index, index.search(source(FACTS[8:]), 3)


@settings(deadline=None)
@given(st.sampled_from(sorted(BAD)), st.integers(0, 3))
def test_a_bad_key_among_good_ones(what: str, place: int) -> None:
    index, before = filled()
    keys = source(FACTS[8:])
    keys[place] = BAD[what]
    with pytest.raises(StoreError, match=f"{FACTS[8 + place]} has norm"):
        index.add(FACTS[8:], keys)
    assert len(index) == 8
    assert index.search(source(FACTS[8:]), 3) == before


@settings(deadline=None)
@given(st.integers(1, 3 * WIDTH).filter(lambda width: width != WIDTH), st.integers(0, 4), st.integers(0, 4))
def test_a_wrong_shape(width: int, rows: int, names: int) -> None:
    index, before = filled()
    with pytest.raises(StoreError, match=r"keys have shape .*expected"):
        index.add(FACTS[8 : 8 + names], np.ones((rows, width), np.float32))
    assert index.search(source(FACTS[8:]), 3) == before


@settings(deadline=None)
@given(st.lists(st.integers(0, 11), min_size=1, max_size=6))
def test_duplicates(numbers: list[int]) -> None:
    index, before = filled()
    names = [FACTS[number] for number in numbers]
    if len(set(names)) == len(names) and not any(number < 8 for number in numbers):
        index.add(names, source(names))
        assert len(index) == 8 + len(names)
        return
    with pytest.raises(StoreError, match=r"is in the key index already|is given twice") as caught:
        index.add(names, source(names))
    assert any(name in str(caught.value) for name in names)
    assert len(index) == 8
    assert index.search(source(FACTS[8:]), 3) == before


@settings(deadline=None)
@given(st.text(max_size=40).filter(lambda name: not re.match("[0-9a-f]{16}", name)))
def test_what_is_no_digest(name: str) -> None:
    index, _ = filled()
    with pytest.raises(StoreError, match="no fact digest"):
        index.add([name], source(FACTS[8:9]))


def test_no_digest_stands_for_minus_one() -> None:
    """FAISS means "none" by −1, and takes it as an id all the same."""
    index, _ = filled()
    for name in ("f" * 32, "0" * 32, "8" + "0" * 31):
        index.add([name], source([name]))
        assert index.search(source([name]), 1)[0][0][0] == name
        index.remove([name])
    with pytest.raises(StoreError, match=f"{FACTS[9]} is not in the key index"):
        index.remove([FACTS[0], FACTS[9]])
    assert FACTS[0] in index
