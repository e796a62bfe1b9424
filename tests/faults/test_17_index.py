"""17. The index missing, damaged or behind: rebuilt, with the same answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lifelong_edit.stores import KeyIndex, digest_bytes
from lifelong_edit.stores.index import _digest, _Note

WIDTH = 6
FACTS = [digest_bytes(bytes([number])) for number in range(20)]
KEYS = dict(zip(FACTS, np.random.default_rng(0).standard_normal((20, WIDTH)).astype(np.float32), strict=True))
ASKED = np.random.default_rng(1).standard_normal((3, WIDTH)).astype(np.float32)


def source(facts: Sequence[str]) -> np.ndarray:
    """The keys of facts, as the log would give them."""
    return np.stack([KEYS[fact] for fact in facts])


def kept(folder: Path) -> KeyIndex:
    """An index of the first 18 facts, kept at the head `chain`."""
    index = KeyIndex(WIDTH, source)
    index.add(FACTS[:18], source(FACTS[:18]))
    index.save(folder, "chain")
    return index


def opened(folder: Path, chain: str = "chain") -> tuple[KeyIndex, bool]:
    """The index as a run finds it, and whether it had to be made anew."""
    built = []

    def counted(facts: Sequence[str]) -> np.ndarray:
        built.append(len(facts))
        return source(facts)

    found = KeyIndex.open(folder, WIDTH, chain, counted, FACTS[:18])
    return found, bool(built)


HARMS: dict[str, Callable[[bytes], bytes | None]] = {
    "deleted": lambda data: None,
    "empty": lambda data: b"",
    "truncated": lambda data: data[:-5],
    "flipped": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :],
    "extended": lambda data: data + b"junk",
}


@pytest.mark.parametrize("file", ["keys.faiss", "keys.json"])
@pytest.mark.parametrize("harm", HARMS)
def test_harmed(tmp_path: Path, file: str, harm: str) -> None:
    original, path = kept(tmp_path / "index"), tmp_path / "index" / file
    data = HARMS[harm](path.read_bytes())
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    found, rebuilt = opened(tmp_path / "index")
    assert rebuilt
    assert found.search(ASKED, 5) == original.search(ASKED, 5)


def test_behind(tmp_path: Path) -> None:
    """It was kept at another head; and one that is as it was kept is taken as it is."""
    original = kept(tmp_path / "index")
    for chain, wanted in (("a later chain", True), ("chain", False)):
        found, rebuilt = opened(tmp_path / "index", chain)
        assert rebuilt == wanted
        assert found.search(ASKED, 5) == original.search(ASKED, 5)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("index")


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["keys.faiss", "keys.json"]), st.floats(0, 1, exclude_max=True), st.integers(0, 7))
@example("keys.json", 0.998046875, 0)  # how many keys its directions were fitted to
def test_any_flipped_bit(room: Path, file: str, where: float, bit: int) -> None:
    original = kept(room)
    data = bytearray((room / file).read_bytes())
    data[int(where * len(data))] ^= 1 << bit
    (room / file).write_bytes(data)
    found, rebuilt = opened(room)
    assert rebuilt
    assert found.search(ASKED, 5) == original.search(ASKED, 5)


def test_more_directions_than_the_file_holds(tmp_path: Path) -> None:
    """With a digest that fits: whoever can write the one can write the other. Found by coverage-guided fuzzing."""
    original, folder = kept(tmp_path), tmp_path
    note = json.loads((folder / "keys.json").read_bytes())
    data = (folder / "keys.faiss").read_bytes()[:40]
    note |= {"directions": 5}
    note["digest"] = _digest(data, msgspec.convert(note, _Note))
    (folder / "keys.json").write_text(json.dumps(note))
    (folder / "keys.faiss").write_bytes(data)
    found, built = opened(folder)
    assert built and found.search(ASKED, 3) == original.search(ASKED, 3)
