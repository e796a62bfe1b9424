"""States are rebuilt from snapshots and shifts, and are refused where they are not what was logged."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from lifelong_edit.errors import StoreDamagedError
from lifelong_edit.facts import Fact
from lifelong_edit.stores import (
    Dense,
    Edit,
    EditLog,
    Factors,
    Init,
    StepRecord,
    digest_bytes,
    encode_shifts,
    encode_tensors,
    materialise,
    tensors_digest,
)
from lifelong_edit.timeline import Timeline
from lifelong_edit.timeline.history import History
from lifelong_edit.timeline.states import environment, sketch, weights_at
from tests.faults import small

SHAPES = {"low": (7, 5), "high": (5, 4)}
Gate = Callable[..., dict[str, Any]]


@pytest.fixture
def log(tmp_path: Path) -> EditLog:
    """A store of arrays alone, at step 0."""
    zeros = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    stored = encode_tensors(zeros)
    record = Init(
        step=0, parent=-1, previous="", time="t", weights_digest=tensors_digest(zeros), live_digest="",
        parts=small.parts(tensors_digest(zeros)),
    )  # fmt: skip
    return EditLog.create(
        tmp_path / "arrays", record, blobs={digest_bytes(stored): stored}, weights=digest_bytes(stored)
    )


def _add(log: EditLog, seed: int, change: Callable[[StepRecord], StepRecord] = lambda record: record) -> None:
    """A step whose shift is drawn by `seed`, factors at odd steps; `change` spoils its record."""
    random, head = np.random.default_rng(seed), log.head()
    before = weights_at(log, History(log.steps()), head.step, SHAPES)
    shift = {}
    for name, (rows, columns) in SHAPES.items():
        left, right = (random.standard_normal(s).astype(np.float32) for s in ((rows, 2), (2, columns)))
        shift[name] = Factors(left, right) if head.step % 2 else Dense(left @ right)
    weights = {name: before[name] + materialise(shift[name]) for name in SHAPES}
    stored, encoded = encode_tensors(weights), encode_shifts(shift)
    digest = tensors_digest(weights)
    record = change(Edit(
        step=head.step + 1, parent=head.step, previous=head.chain, time="t", weights_digest=digest, live_digest="",
        parts=small.parts(digest, shift=digest_bytes(encoded)),
        provenance={"environment": environment(), "sketch": sketch(weights)},
    ))  # fmt: skip
    blobs = {digest_bytes(data): data for data in (stored, encoded)}
    log.append(record, facts={}, blobs=blobs, weights=digest_bytes(stored))


def test_a_state_is_the_sum_of_its_shifts(log: EditLog) -> None:
    for seed in range(5):
        _add(log, seed)
    history = History(log.steps())
    for step in range(6):
        found = weights_at(log, history, step, SHAPES)
        assert tensors_digest(found) == history.record(step).weights_digest
        assert {name: array.shape for name, array in found.items()} == SHAPES


def _spoil(**changes: Any) -> Callable[[StepRecord], StepRecord]:
    def change(record: StepRecord) -> StepRecord:
        provenance = {**record.provenance, **changes.get("provenance", {})}
        return msgspec.structs.replace(record, **{**changes, "provenance": provenance})

    return change


def test_other_weights_in_the_same_environment_are_damage(log: EditLog) -> None:
    _add(log, 0, _spoil(weights_digest="0" * 32))
    with pytest.raises(StoreDamagedError, match=r"step 1 were rebuilt with digest .* but 0000"):
        weights_at(log, History(log.steps()), 1, SHAPES)


def test_rounding_of_another_environment_is_accepted_and_said(log: EditLog, caplog: Any) -> None:
    elsewhere = {**environment(), "numpy": "1.0.0"}
    _add(log, 0, _spoil(weights_digest="0" * 32, provenance={"environment": elsewhere}))
    with caplog.at_level(logging.WARNING):
        weights_at(log, History(log.steps()), 1, SHAPES)
    assert "step 1" in caplog.text
    assert "numpy 1.0.0 →" in caplog.text


def test_more_than_rounding_is_refused_in_any_environment(log: EditLog) -> None:
    elsewhere = {**environment(), "numpy": "1.0.0"}

    def spoil(record: StepRecord) -> StepRecord:
        moved = {name: [v * (1 + 1e-5) for v in values] for name, values in record.provenance["sketch"].items()}
        return _spoil(weights_digest="0" * 32, provenance={"environment": elsewhere, "sketch": moved})(record)

    _add(log, 0, spoil)
    with pytest.raises(StoreDamagedError, match="differ by more than rounding"):
        weights_at(log, History(log.steps()), 1, SHAPES)


def test_the_sketch_sees_a_change_of_one_entry() -> None:
    weights = {"m": np.random.default_rng(0).standard_normal((30, 20)).astype(np.float32)}
    moved = {"m": weights["m"].copy()}
    moved["m"][3, 4] += 1
    difference = np.subtract(sketch(moved)["m"][1:], sketch(weights)["m"][1:])
    np.testing.assert_allclose(np.abs(difference), 1, rtol=1e-5)  # one entry meets signs only


@pytest.mark.parametrize("part", ["shift", "keys", "snapshot"])
def test_a_step_with_a_damaged_payload_is_refused_by_name(
    start_store: Callable[..., Timeline],
    tmp_path: Path,
    batch: Callable[..., list[Fact]],
    lenient: Gate,
    part: str,
) -> None:
    with start_store(tmp_path / "store", snapshot_every=2) as timeline:
        for i in range(4):
            timeline.apply(batch(i), gate=lenient)
        digest = str(getattr(timeline.show(2 if part == "snapshot" else 3), part))
        data = timeline._log.blob(digest)
    path = tmp_path / "store" / "data.mdb"
    whole = path.read_bytes()
    assert data[-200:] in whole
    path.write_bytes(whole.replace(data[-200:], bytes([data[-200] ^ 1]) + data[-199:]))
    with Timeline.open(tmp_path / "store") as timeline:
        with pytest.raises(StoreDamagedError, match=digest):
            timeline.apply(batch(7), gate=lenient) if part == "keys" else timeline.rollback(3)
        assert timeline.head == 4
