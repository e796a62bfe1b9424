"""What was measured of a step stays with it, through everything that a store goes through."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from lifelong_edit.errors import StoreError, UsageError
from lifelong_edit.stores import EditLog, Purge, StepRecord, backup, digest_bytes, fsck
from lifelong_edit.stores.copying import shrink
from tests.faults import small

MakeStore = Callable[..., EditLog]
AddStep = Callable[..., StepRecord]


def test_it_is_read_as_it_was_kept(make_store: MakeStore, add_step: AddStep) -> None:
    log = make_store()
    add_step(log)
    add_step(log)
    assert log.measurements() == []
    log.keep_measurement(small.measurement(2))
    log.keep_measurement(small.measurement(0, "a", "b"))
    log.close()
    with EditLog.open(log.path, read_only=True) as again:
        assert again.measurements() == [small.measurement(0, "a", "b"), small.measurement(2)]
        with pytest.raises(StoreError, match="open read-only"):
            again.keep_measurement(small.measurement(1))


def test_another_one_takes_its_place(make_store: MakeStore, add_step: AddStep) -> None:
    log = make_store()
    add_step(log)
    log.keep_measurement(small.measurement(1))
    fuller = msgspec.structs.replace(small.measurement(1, "a", "b"), sample=None)
    log.keep_measurement(fuller)
    assert log.measurements() == [fuller]
    with pytest.raises(UsageError, match="there is no step 2"):
        log.keep_measurement(small.measurement(2))


def test_it_changes_nothing_else(make_store: MakeStore, add_step: AddStep) -> None:
    log = make_store()
    add_step(log)
    before = small.content(log)
    log.keep_measurement(small.measurement(1))
    assert small.content(log) == before
    add_step(log)
    log.close()
    assert fsck(log.path).sound and fsck(log.path).records["measurements"] == 1


def test_what_is_purged_goes_from_it(make_store: MakeStore, add_step: AddStep) -> None:
    log = make_store()
    gone = add_step(log).added[0]
    log.keep_measurement(small.measurement(1, gone, "other"))
    log.keep_measurement(small.measurement(0, "other"))
    head = log.head()
    record = Purge(
        step=2, parent=1, previous=head.chain, time="t", weights_digest="w1", live_digest="l", purged=(gone,)
    )
    log.append(record, facts={}, blobs={}, weights=head.weights)
    assert log.measurements() == [small.measurement(0, "other"), small.measurement(1, "other")]
    shrink(log, overwrite=True)
    log.close()
    with EditLog.open(log.path, read_only=True) as again:
        assert again.measurements() == [small.measurement(0, "other"), small.measurement(1, "other")]
    assert f"prompt {gone}".encode() not in (log.path / "data.mdb").read_bytes()


def test_a_copy_has_it(make_store: MakeStore, add_step: AddStep, tmp_path: Path) -> None:
    log = make_store()
    add_step(log)
    log.keep_measurement(small.measurement(1))
    log.close()
    backup(log.path, tmp_path / "copy")
    with EditLog.open(tmp_path / "copy", read_only=True) as again:
        assert again.measurements() == [small.measurement(1)]


def test_one_of_another_step_is_found(make_store: MakeStore, add_step: AddStep) -> None:
    """Two intact records that changed places, names and all."""
    log = make_store()
    add_step(log)
    environment = log._environment
    from lifelong_edit.stores.measurements import encode_measurement
    from lifelong_edit.stores.tables import Tables, step_key

    payload = encode_measurement(small.measurement(1))
    environment.write(lambda t: Tables(environment, t).put("measurements", step_key(0), payload))
    environment.write(lambda t: Tables(environment, t).put("measurements", step_key(1), digest_bytes(b"x").encode()))
    log.close()
    found = {finding.record: finding.problem for finding in fsck(log.path).findings}
    assert found["measurements/0"] == "it is the measurement of step 1"
    assert "is no measurement of this schema" in found["measurements/1"]
