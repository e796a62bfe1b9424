"""What a store of a large model's size does otherwise: ΔW by its shifts, in memory once; 16 bits. On tiny matrices."""

from __future__ import annotations

import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from lifelong_edit.bench import in_16_bits
from lifelong_edit.errors import StepRefusedError
from lifelong_edit.facts import Fact
from lifelong_edit.stores import (
    WEIGHTS,
    Dense,
    EditLog,
    Factors,
    Part,
    decode_shifts,
    decode_whole,
    encode_shifts,
    encode_whole,
    fsck,
    halved,
    materialise,
    replay,
    tensors_digest,
)
from lifelong_edit.timeline import Timeline
from lifelong_edit.timeline.keeping import compact

SMALL: dict[str, Any] = {
    "modules": ("2-3",), "passes": 1, "rehearse": 0, "preserved": 0, "phrasings": 0, "snapshot_every": 2,
}  # fmt: skip
Start = Callable[..., Timeline]


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every matrix counts as a large one."""
    monkeypatch.setattr("lifelong_edit.timeline.commit.WHOLE_UP_TO", 0)
    for place in ("passes", "batch"):
        monkeypatch.setattr(f"lifelong_edit.editors.ridge.{place}.LARGE", 1)


def taught(
    start: Start, folder: Path, batch: Callable[..., list[Fact]], gate: Any, count: int, **changes: Any
) -> list[str]:
    """The digests of ΔW after each of `count` steps of one fact."""
    with start(folder, preserve=[], **SMALL, **changes) as timeline:
        return [timeline.apply(batch(i, 1), gate=gate).weights_digest for i in range(count)]


def test_a_large_state_is_stored_by_its_shifts(
    large: None, tmp_path: Path, start_store: Start, batch: Any, lenient: Any
) -> None:
    """No snapshot, no whole head: until the shifts take as many bytes, which a reconsolidation ends."""
    digests = taught(start_store, tmp_path / "s", batch, lenient, 4)
    with EditLog.open(tmp_path / "s", read_only=True) as log:
        records = log.steps()
        assert log.head().weights is None
        assert [r.parts[WEIGHTS].whole for r in records[1:]] == [None] * 4
        sizes = [log.blob_size(str(r.shift)) for r in records[1:]]
        assert all(isinstance(s, Factors) for s in decode_shifts(log.blob(str(records[1].shift))).values())
    with Timeline.open(tmp_path / "s") as timeline:
        whole = 4 * sum(rows * columns for rows, columns in timeline.config.model.modules.values())
        assert sum(sizes) < whole
        assert tensors_digest(timeline.weights(timeline.head)) == digests[-1]
        assert timeline.rollback(2).weights_digest == digests[1]
        again = timeline.apply(batch(2, 1), gate=lenient, again=True)
        assert again.weights_digest == digests[2]  # from the state as it was read, to the bit
        assert timeline.reconsolidate(guard=False).parts[WEIGHTS].whole is not None
        assert tensors_digest(timeline.weights(timeline.head)) == timeline.show(timeline.head).weights_digest
    assert fsck(tmp_path / "s").sound
    assert compact(tmp_path / "s").step is not None
    with Timeline.open(tmp_path / "s", read_only=True) as timeline:
        assert tensors_digest(timeline.weights(timeline.head)) == timeline.show(timeline.head).weights_digest


def test_shifts_that_take_as_many_bytes_as_the_matrix_end_in_a_whole_one(
    large: None, tmp_path: Path, start_store: Start, batch: Any, lenient: Any
) -> None:
    taught(start_store, tmp_path / "s", batch, lenient, 9)
    with EditLog.open(tmp_path / "s", read_only=True) as log:
        wholes = [r.step for r in log.steps() if r.parts[WEIGHTS].whole is not None]
    assert wholes and wholes[0] > 2


def test_a_small_state_is_stored_as_it_always_was(tmp_path: Path, start_store: Start, batch: Any, lenient: Any) -> None:
    taught(start_store, tmp_path / "s", batch, lenient, 2)
    with EditLog.open(tmp_path / "s", read_only=True) as log:
        assert log.head().weights is not None and log.steps()[2].parts[WEIGHTS].whole is not None


@pytest.mark.parametrize("kind", ["dense", "factors"])
def test_16_bits_are_off_by_what_is_said(kind: str) -> None:
    g = np.random.default_rng(0)
    left, right = 1e-6 * g.standard_normal((60, 3)).astype(np.float32), 1e4 * g.standard_normal((3, 40))
    exact = Factors(left, right.astype(np.float32))
    shift = exact if kind == "factors" else Dense(materialise(exact))
    found, error = halved(shift)
    assert found.nbytes * 2 == shift.nbytes
    off = np.linalg.norm(materialise(found) - materialise(shift)) / np.linalg.norm(materialise(shift))
    assert error == pytest.approx(float(off), rel=1e-6)
    assert 1e-6 < error < 2**-11 * (2 if kind == "factors" else 1)
    assert materialise(decode_shifts(encode_shifts({"m": found}))["m"]).tobytes() == materialise(found).tobytes()
    with pytest.raises(StepRefusedError, match="16 bits"):
        halved(Dense(np.full((2, 2), 7e4, np.float32)))


def test_a_whole_of_16_bits_is_kept_so_only_where_it_is_one() -> None:
    exact = {"m": np.array([[1.0, 2**-10]], np.float32), "n": np.array([[1 / 3]], np.float32)}
    data = encode_whole(exact, half=True)
    found = decode_whole(data, "w")
    assert all(found[name].tobytes() == array.tobytes() for name, array in exact.items())
    assert len(encode_whole({"m": exact["m"]}, half=True)) < len(encode_whole({"m": exact["m"]}))


def test_a_store_in_16_bits(tmp_path: Path, start_store: Start, batch: Any, lenient: Any) -> None:
    """A step is what is stored of it: reopened, rolled back, solved again and taken back to the same bits."""
    plain = taught(start_store, tmp_path / "plain", batch, lenient, 2)
    digests = taught(start_store, tmp_path / "half", batch, lenient, 2, shift_dtype="float16")
    assert plain[0] != digests[0]
    with Timeline.open(tmp_path / "half") as timeline:
        assert tensors_digest(timeline.weights(timeline.head)) == digests[-1]
        told = timeline.show(1).report["editor"]["rounding"]
        assert set(told) == set(timeline.config.model.modules) and all(0 < e < 1e-3 for e in told.values())
        assert timeline.rollback(1).weights_digest == digests[0]
        one = timeline.reconsolidate(guard=False)
        assert "rounding" in one.report["editor"]
        timeline.apply(batch(5, 1), gate=lenient)
        gone = timeline.retract([batch(5, 1)[0].digest])
        assert gone.weights_digest == one.weights_digest
        whole = one.parts[WEIGHTS].whole
    with EditLog.open(tmp_path / "half", read_only=True) as log, EditLog.open(tmp_path / "plain") as other:
        assert 1.8 * log.blob_size(str(whole)) < other.blob_size(str(other.head().weights))
        assert log.blob_size(str(log.steps()[1].shift)) < 0.7 * other.blob_size(str(other.steps()[1].shift))
    assert fsck(tmp_path / "half").sound


def test_keys_of_conflicts_in_16_bits(tmp_path: Path, start_store: Start, batch: Any, fact: Any, lenient: Any) -> None:
    """What is decided by a key is decided by the one that is kept: reopened, or with the index made anew, as before."""
    found: dict[str, tuple[Any, ...]] = {}
    for dtype in ("float32", "float16"):
        with start_store(tmp_path / dtype, key_dtype=dtype) as timeline:
            timeline.apply(batch(0), gate=lenient)
            near = timeline._solve().index().search(timeline.bench().conflict_keys(batch(2)), 3)
            keys = {digest: held.conflict for digest, held in timeline._solve().state().keys.items()}
            assert {key.dtype.name for key in keys.values()} == {dtype}
            head, ahead = timeline.head, timeline.forecast(batch(1))
        shutil.rmtree(tmp_path / dtype / "index")
        with Timeline.open(tmp_path / dtype) as timeline:
            assert timeline._solve().index().search(timeline.bench().conflict_keys(batch(2)), 3) == near
            assert timeline.forecast(batch(1)) == ahead
            step = timeline.apply([fact(0, "Sydney"), *batch(1)], gate=lenient)
            one = timeline.reconsolidate(guard=False)
            timeline.rollback(head)
            again = timeline.apply([fact(0, "Sydney"), *batch(1)], gate=lenient, again=True)
            assert (again.weights_digest, again.conflicts) == (step.weights_digest, step.conflicts) and step.conflicts
            assert timeline.reconsolidate(guard=False).weights_digest == one.weights_digest
        with EditLog.open(tmp_path / dtype, read_only=True) as log:
            size = log.blob_size(log.steps()[1].key_blobs[0])
        found[dtype] = (keys, size, near)
    (exact, large, far), (half, small, near) = found["float32"], found["float16"]
    assert 0 <= large - small - sum(key.nbytes for key in half.values()) < 64  # lengths of a header
    for digest, key in exact.items():
        assert np.all(np.abs(half[digest] - key) <= 2.0**-11 * np.abs(key) + 3e-8)
    assert [[name for name, _ in row] for row in near] == [[name for name, _ in row] for row in far]
    assert fsck(tmp_path / "float16").sound
    with pytest.raises(StepRefusedError, match="key_dtype"):
        in_16_bits(np.full((1, 2), 7e4, np.float32))


def test_a_step_is_added_one_matrix_at_a_time() -> None:
    """ΔW before and after, and one matrix: not a third ΔW. By what NumPy asks for."""
    shapes = {f"m{i}": (1024, 512) for i in range(8)}
    size = sum(4 * rows * columns for rows, columns in shapes.values())
    g = np.random.default_rng(0)
    shift = {
        n: Factors(*(g.standard_normal(s).astype(np.float32) for s in ((r, 2), (2, c)))) for n, (r, c) in shapes.items()
    }
    blob, before = encode_shifts(shift), {n: np.zeros(s, np.float32) for n, s in shapes.items()}
    part = Part(fold="sum", change=("b",), digest="")
    tracemalloc.start()
    after = replay([part], lambda _: blob, before)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size <= peak < 1.4 * size
    assert np.array_equal(after["m3"], materialise(shift["m3"]))


@pytest.mark.parametrize("name", ["shift_dtype", "key_dtype"])
def test_a_setting_that_is_at_rest_changes_no_digest(name: str) -> None:
    from lifelong_edit import Settings

    half = Settings(**{name: "float16"}).encoded()  # type: ignore[arg-type]
    assert Settings().encoded() == Settings(**{name: "float32"}).encoded()  # type: ignore[arg-type]
    assert name.encode() not in Settings().encoded() and name.encode() in half
    assert msgspec.json.decode(half)[name] == "float16"
