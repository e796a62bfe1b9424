"""Parts of a state: one replay, folds of three kinds, keys written and read in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifelong_edit.errors import StoreDamagedError
from lifelong_edit.stores import (
    Dense,
    FactKeys,
    Factors,
    Part,
    advance,
    conflict_entries,
    decode_entries,
    decode_tensors,
    digest_bytes,
    encode_entries,
    encode_shifts,
    encode_tensors,
    entry_names,
    replay,
    tensors_digest,
    upsert_digest,
    zeros,
)

SHAPES = {"m": (5, 4), "n": (3, 3)}
FACTS = [digest_bytes(b"fact", bytes([n])) for n in range(6)]


class Blobs(dict[str, bytes]):
    """A store of blobs that counts what is read of it."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[str] = []

    def put(self, data: bytes) -> str:
        self[digest_bytes(data)] = data
        return digest_bytes(data)

    def __call__(self, digest: str) -> bytes:
        self.read.append(digest)
        return self[digest]


@pytest.fixture
def blobs() -> Blobs:
    return Blobs()


def drawn(seed: int) -> dict[str, Any]:
    """A shift: dense for one module, two factors for the other."""
    random = np.random.default_rng(seed)
    left, right = (random.standard_normal(shape).astype(np.float32) for shape in ((3, 2), (2, 3)))
    return {"m": Dense(random.standard_normal(SHAPES["m"]).astype(np.float32)), "n": Factors(left, right)}


def traced(value: int, rows: int = 2) -> FactKeys:
    """Keys of a fact that are all of one number."""
    return FactKeys(
        {"m": np.full((rows, 5), value, np.int16), "n": np.full((1, 3), value, np.int16)}, np.full(5, value, np.float32)
    )


def line_of_sums(blobs: Blobs, seeds: range, whole_at: Mapping[int, dict[str, Any]]) -> list[Part]:
    return [
        Part(
            fold="sum",
            change=(blobs.put(encode_shifts(drawn(seed))),),
            whole=blobs.put(encode_tensors(whole_at[seed])) if seed in whole_at else None,
            digest="",
        )
        for seed in seeds
    ]


def bare_sum(seeds: range) -> dict[str, np.ndarray]:
    """The left fold in float32, by hand."""
    found = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    for seed in seeds:
        shift = drawn(seed)
        found["m"] = found["m"] + shift["m"].array
        found["n"] = found["n"] + shift["n"].left @ shift["n"].right
    return found


def test_sums_are_left_folds_to_the_bit(blobs: Blobs) -> None:
    found = replay(line_of_sums(blobs, range(9), {}), blobs, zeros(SHAPES))
    assert tensors_digest(found) == tensors_digest(bare_sum(range(9)))
    assert replay([], blobs, zeros(SHAPES)).keys() == SHAPES.keys()


def test_a_replay_begins_at_the_last_whole(blobs: Blobs) -> None:
    line = line_of_sums(blobs, range(9), {3: bare_sum(range(4)), 6: bare_sum(range(7))})
    found = replay(line, blobs)  # what it starts from is never asked for
    assert tensors_digest(found) == tensors_digest(bare_sum(range(9)))
    assert blobs.read == [line[6].whole, line[7].change[0], line[8].change[0]]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["sum", "upsert", "replace"]), st.integers(0, 99)), max_size=8), st.data())
def test_going_on_step_by_step_is_the_replay(line: list[tuple[str, int]], data: Any) -> None:
    """Wherever a writer stood, and whichever steps brought a part whole."""
    blobs = Blobs()
    for fold in ("sum", "replace", "upsert"):
        parts = []
        for at, (kind, seed) in enumerate(line):
            if kind == fold:
                parts.append(one_part(blobs, fold, seed, whole=data.draw(st.booleans(), label=f"whole at {at}")))
        cut = data.draw(st.integers(0, len(parts)), label="cut")
        start = zeros(SHAPES) if fold == "sum" else {}
        moved = replay(parts[:cut], blobs, start)
        for part in parts[cut:]:
            moved = advance(moved, part, blobs)
        assert content(moved) == content(replay(parts, blobs, start))


def one_part(blobs: Blobs, fold: str, seed: int, *, whole: bool) -> Part:
    random = np.random.default_rng(seed)
    if fold == "sum":
        arrays = {name: random.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
        change, kept = blobs.put(encode_shifts(drawn(seed))), blobs.put(encode_tensors(arrays))
    elif fold == "replace":
        change = kept = blobs.put(encode_tensors({"mean": random.random(4)}))
    else:
        names = random.choice(FACTS, 2, replace=False)
        change = kept = blobs.put(encode_entries({str(name): traced(seed) for name in names}))
    return Part(fold=fold, change=() if whole else (change,), whole=kept if whole else None, digest="")  # type: ignore[arg-type]


def content(part: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: {n: rows.tobytes() for n, rows in value.rows.items()} if isinstance(value, FactKeys) else value.tobytes()
        for name, value in sorted(part.items())
    }


def test_later_entries_replace_earlier_ones_and_the_others_stay_the_same_objects(blobs: Blobs) -> None:
    first = blobs.put(encode_entries({FACTS[0]: traced(1), FACTS[1]: traced(1, rows=7)}))
    second = [blobs.put(encode_entries({FACTS[n]: traced(2)})) for n in (1, 2)]
    before = replay([Part(fold="upsert", change=(first,), digest=upsert_digest([first]))], blobs)
    step = Part(fold="upsert", change=tuple(second), digest=upsert_digest(second))
    after = advance(before, step, blobs)
    values = {name: int(keys.rows["m"][0, 0]) for name, keys in after.items()}
    assert values == dict(zip(FACTS, (1, 2, 2), strict=False))
    assert after[FACTS[0]] is before[FACTS[0]]
    assert len(before[FACTS[1]].rows["m"]) == 7, "what was there before is left as it was"
    assert set(advance(before, step, blobs, only={FACTS[0], FACTS[2]})) == {FACTS[0], FACTS[2]}


def test_of_arrays_only_the_last_are_read(blobs: Blobs) -> None:
    made = [blobs.put(encode_tensors({"mean": np.full(3, n, np.float64)})) for n in range(4)]
    nothing = Part(fold="replace", digest="")
    found = replay([*(Part(fold="replace", change=(digest,), digest="") for digest in made), nothing], blobs)
    assert found["mean"].tolist() == [3, 3, 3] and blobs.read == [made[-1]]
    found["mean"] += 1  # they are the reader's own


def test_a_shift_that_fits_nothing_is_damage(blobs: Blobs) -> None:
    for shapes in ({"m": (5, 4)}, {"m": (5, 1), "n": (3, 3)}):
        with pytest.raises(StoreDamagedError, match="expected matrices of"):
            replay(line_of_sums(blobs, range(1), {}), blobs, zeros(shapes))


def test_keys_come_back_and_keep_their_bytes() -> None:
    """The bytes are those of every release so far, so that a step keeps the digests that it would have had."""
    keys = {FACTS[1]: traced(3, rows=4), FACTS[0]: traced(7)}
    facts = sorted(keys)
    former = encode_tensors({
        "facts": np.frombuffer(bytes.fromhex("".join(facts)), np.uint8).reshape(2, -1),
        "conflict": np.stack([keys[fact].conflict for fact in facts]),
        "rows/m": np.concatenate([keys[fact].rows["m"] for fact in facts]),
        "counts/m": np.array([len(keys[fact].rows["m"]) for fact in facts], np.int32),
        "rows/n": np.concatenate([keys[fact].rows["n"] for fact in facts]),
        "counts/n": np.array([1, 1], np.int32),
    })  # fmt: skip
    assert encode_entries(keys) == former
    assert content(decode_entries(former, "keys")) == content(keys)
    assert entry_names(former, "keys") == tuple(facts)
    names, conflict = conflict_entries(former, "keys")
    assert names == tuple(facts) and conflict.tolist() == [keys[fact].conflict.tolist() for fact in facts]


@pytest.mark.parametrize("read", [decode_entries, entry_names, conflict_entries])
def test_keys_that_do_not_fit_each_other_are_damage(read: Callable[[bytes, str], object]) -> None:
    """Without `conflict` they are entries of another part: none of a live fact's keys, which `keys_at` says."""
    for missing, noticed in (
        ("facts", {decode_entries, entry_names, conflict_entries}),
        ("conflict", {conflict_entries}),
        ("counts/m", {decode_entries}),
    ):
        tensors = decode_tensors(encode_entries({FACTS[0]: traced(1)}))
        del tensors[missing]
        if read in noticed:
            with pytest.raises(StoreDamagedError, match="keys of step 3: the parts do not fit each other"):
                read(encode_tensors(tensors), "keys of step 3")
    uneven = decode_tensors(encode_entries({FACTS[0]: traced(1), FACTS[1]: traced(1)}))
    uneven["conflict"] = uneven["conflict"][:1]
    if read is not entry_names:
        with pytest.raises(StoreDamagedError, match="do not fit"):
            read(encode_tensors(uneven), "keys of step 3")


def test_arrays_can_be_read_alone() -> None:
    arrays = {"a": np.arange(6, dtype=np.int32).reshape(2, 3), "b": np.zeros((0, 3), np.float32), "c": np.float64(2.5)}
    data = encode_tensors({name: np.asarray(array) for name, array in arrays.items()})
    for name, array in arrays.items():
        found = decode_tensors(data, only=(name, "absent"))
        assert list(found) == [name] and found[name].shape == np.shape(array)
        assert np.array_equal(found[name], array) and found[name].dtype == np.asarray(array).dtype
    with pytest.raises(StoreDamagedError, match="takes 24 bytes"):
        decode_tensors(data.replace(b'"shape":[2,3]', b'"shape":[2,2]'), only=("a",))
