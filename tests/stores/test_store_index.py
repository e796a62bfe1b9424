"""The key index: a cache that answers as NumPy does, and is rebuilt whenever it is in doubt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifelong_edit.stores import KeyIndex, digest_bytes

WIDTH = 6


def _facts(count: int) -> list[str]:
    return [digest_bytes(str(i).encode()) for i in range(count)]


def _vectors(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)


def _source(facts: Sequence[str]) -> np.ndarray:
    """The keys of the facts of `_facts`, as the store would give them."""
    return np.stack([KEYS[fact] for fact in facts])


KEYS = dict(zip(_facts(22), [*_vectors(20), *_vectors(2, 2)], strict=True))


def _filled(count: int = 20) -> KeyIndex:
    index = KeyIndex(WIDTH, _source)
    index.add(_facts(count), _vectors(count))
    return index


@settings(deadline=None)
@given(st.integers(0, 20), st.sets(st.integers(0, 19)), st.integers(1, 25))
def test_it_finds_what_numpy_finds(queries: int, removed: set[int], count: int) -> None:
    facts, vectors, asked = _facts(20), _vectors(20).astype(float), _vectors(queries, 1).astype(float)
    index = _filled()
    index.remove([facts[i] for i in removed])
    left = [i for i in range(20) if i not in removed]
    unit = vectors[left] / np.linalg.norm(vectors[left], axis=1, keepdims=True)
    for query, found in zip(asked, index.search(asked.astype(np.float32), count), strict=True):
        cosines = unit @ (query / np.linalg.norm(query))
        order = np.argsort(-cosines)[:count]
        assert [fact for fact, _ in found] == [facts[left[i]] for i in order]
        np.testing.assert_allclose([c for _, c in found], cosines[order], atol=1e-6)  # float32 dot products of 6
    assert len(index) == len(left)
    assert [fact in index for fact in facts] == [i in left for i in range(20)]


def test_an_intact_index_is_loaded_and_goes_on(tmp_path: Path) -> None:
    _filled().save(tmp_path / "index", "chain")
    loaded, called = _open(tmp_path / "index", "chain")
    assert called == []
    assert loaded.search(_vectors(3, 1), 5) == _filled().search(_vectors(3, 1), 5)
    loaded.remove(_facts(20)[:10])
    loaded.add(_facts(21)[20:], _vectors(1, 2))
    assert len(loaded) == 11


def test_an_index_of_another_head_or_width_is_rebuilt(tmp_path: Path) -> None:
    _filled().save(tmp_path / "index", "an earlier chain")
    assert _open(tmp_path / "index", "chain")[1] == [True]
    KeyIndex(WIDTH + 1, _source).save(tmp_path / "index", "chain")
    assert _open(tmp_path / "index", "chain")[1] == [True]


def _open(folder: Path, chain: str) -> tuple[KeyIndex, list[bool]]:
    called: list[bool] = []

    def source(facts: Sequence[str]) -> np.ndarray:
        called.append(True)
        return _source(facts)

    index = KeyIndex.open(folder, WIDTH, chain, source, _facts(20))
    return index, called[:1]


WIDE = 40
CLUSTERED = np.random.default_rng(3).standard_normal((6, WIDE))


def _wide(count: int, seed: int, spread: float) -> np.ndarray:
    """Keys around six centres; of some the same more than once, so that there are ties."""
    chance = np.random.default_rng(seed)
    keys = CLUSTERED[chance.integers(0, 6, count)] + spread * chance.standard_normal((count, WIDE))
    return np.asarray(np.vstack([keys, keys[: count // 5]])[:count], np.float32)


class Held:
    """Keys by digest, and an index of them that is built, emptied and rebuilt in some order."""

    def __init__(self, keys: dict[str, np.ndarray]) -> None:
        self.keys = keys
        self.index = KeyIndex(WIDE, self.source)

    def source(self, facts: Sequence[str]) -> np.ndarray:
        return np.stack([self.keys[fact] for fact in facts])

    def add(self, facts: Sequence[str]) -> None:
        if facts:
            self.index.add(facts, self.source(facts))


def _brute(keys: dict[str, np.ndarray], queries: np.ndarray, count: int, least: float) -> list[list[str]]:
    names = sorted(keys)
    if not names:
        return [[] for _ in queries]
    units = np.stack([keys[name] for name in names]).astype(np.float64)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    found = []
    for query in queries.astype(np.float64):
        cosines = np.round(units @ (query / np.linalg.norm(query)), 7)
        order = sorted(range(len(names)), key=lambda i: (-cosines[i], names[i]))
        found.append([names[i] for i in order[:count] if cosines[i] >= least])
    return found


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 150),
    st.sampled_from([0.05, 0.3, 1.0]),
    st.sampled_from([-1.0, 0.5, 0.9, 0.999]),
    st.integers(1, 12),
    st.data(),
)
def test_every_kind_and_history_gives_the_exact_answers(
    size: int, spread: float, least: float, count: int, data: st.DataObject
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lifelong_edit.stores.index.DIRECTIONS", 8)
        _check_answers(size, spread, least, count, data)


def _check_answers(size: int, spread: float, least: float, count: int, data: st.DataObject) -> None:
    facts = _facts(size)
    keys = dict(zip(facts, _wide(size, size, spread), strict=True))
    gone = data.draw(st.sets(st.sampled_from(facts)))
    left = {fact: key for fact, key in keys.items() if fact not in gone}
    queries = np.vstack([_wide(4, 99, spread), next(iter(keys.values()))]).astype(np.float32)
    expected = _brute(left, queries, count, least)
    answers = []
    for kinds in (("flat",), ("reduced",), ("reduced", "flat"), ("reduced", "reduced")):
        held = Held(keys)
        order = data.draw(st.permutations(facts)) if size < 30 else facts[::-1]
        held.add(order[: size // 2])
        held.index.rebuild(kinds[0])  # fitted on some: the others have to be found all the same
        held.add(order[size // 2 :])
        held.index.remove(sorted(gone))
        for kind in kinds[1:]:
            held.index.rebuild(kind)
        assert len(held.index) == len(left)
        answers.append(held.index.search(queries, count, least))
    assert all(found == answers[0] for found in answers), "to the last bit"
    assert [[fact for fact, _ in row] for row in answers[0]] == expected


def test_a_reduced_index_is_kept_and_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lifelong_edit.stores.index.DIRECTIONS", 8)
    facts = _facts(60)
    held = Held(dict(zip(facts, _wide(60, 1, 0.3), strict=True)))
    held.add(facts)
    held.index.rebuild("reduced")
    assert (held.index.kind, held.index.fitted, held.index._scan.d) == ("reduced", 60, 9)
    held.index.save(tmp_path / "index", "chain")
    again = KeyIndex.open(tmp_path / "index", WIDE, "chain", held.source, ())
    assert (again.kind, again.fitted, len(again)) == ("reduced", 60, 60)
    queries = _wide(5, 2, 0.3)
    assert again.search(queries, 4) == held.index.search(queries, 4)
    data = bytearray((tmp_path / "index" / "keys.faiss").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "index" / "keys.faiss").write_bytes(data)
    assert len(KeyIndex.open(tmp_path / "index", WIDE, "chain", held.source, ())) == 0


def test_bounds_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cosine exceeds its bound by more than the slack; and without the rest of a key some would."""
    monkeypatch.setattr("lifelong_edit.stores.index.DIRECTIONS", 8)
    facts, keys = _facts(100), _wide(100, 5, 0.4)
    held = Held(dict(zip(facts, keys, strict=True)))
    held.add(facts)
    held.index.rebuild("reduced")
    unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    reduced = held.index._reduced(unit)
    cosines, bounds = unit @ unit.T, reduced @ reduced.T
    assert (cosines <= bounds + 1e-5).all()
    assert (cosines > reduced[:, :-1] @ reduced[:, :-1].T + 1e-5).any()


def test_what_differs_is_told() -> None:
    index, facts = _filled(), _facts(22)
    assert index.differing(facts[5:]) == (sorted(facts[:5]), sorted(facts[20:]))
