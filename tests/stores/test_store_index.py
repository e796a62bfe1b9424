"""The key index: a cache that answers as NumPy does, and is rebuilt whenever it is in doubt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifelong_edit.errors import StoreError
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


BAD = {
    "NaN": [np.nan] * WIDTH,
    "infinity": [np.inf] + [1.0] * (WIDTH - 1),
    "no direction": [0.0] * WIDTH,
    "another width": [1.0] * (WIDTH + 1),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_keys_are_refused_by_name(what: str) -> None:
    index = KeyIndex(WIDTH, _source)
    name = digest_bytes(b"bad")
    with pytest.raises(StoreError, match=name):
        index.add([name], np.array([BAD[what]], np.float32))
    assert len(index) == 0


def test_duplicates_and_strangers_are_refused_by_name() -> None:
    index, facts = _filled(), _facts(22)
    with pytest.raises(StoreError, match=f"{facts[3]} is in the key index already"):
        index.add([facts[20], facts[3]], _vectors(2))
    with pytest.raises(StoreError, match=f"{facts[20]} is given twice"):
        index.add([facts[20], facts[20]], _vectors(2))
    with pytest.raises(StoreError, match=f"{facts[21]} is not in the key index"):
        index.remove([facts[0], facts[21]])
    with pytest.raises(StoreError, match="no fact digest"):
        index.add(["not a digest"], _vectors(1))
    assert len(index) == 20
    assert facts[0] in index


def _delete(path: Path) -> None:
    path.unlink()


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def _extend(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"junk")


@pytest.mark.parametrize("file", ["keys.faiss", "keys.json"])
@pytest.mark.parametrize("harm", [_delete, _truncate, _flip, _extend])
def test_a_harmed_index_is_rebuilt_with_the_same_answers(
    tmp_path: Path, file: str, harm: Callable[[Path], None]
) -> None:
    original = _filled()
    original.save(tmp_path / "index", "chain")
    harm(tmp_path / "index" / file)
    rebuilt, called = _open(tmp_path / "index", "chain")
    assert called == [True]
    assert rebuilt.search(_vectors(3, 1), 5) == original.search(_vectors(3, 1), 5)


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
