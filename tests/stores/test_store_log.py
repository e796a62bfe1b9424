"""The edit log: one transaction per step, verified when read, refused when it is not what was acknowledged."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from lifelong_edit.errors import StoreDamagedError, StoreError, StoreLockedError, UsageError
from lifelong_edit.stores import Edit, EditLog, Init, Reconsolidate, StepRecord, digest_bytes
from tests.faults import small

AddStep = Callable[..., StepRecord]
MakeStore = Callable[..., EditLog]


def test_a_step_that_could_not_be_read_back_is_not_written(make_store: MakeStore) -> None:
    """A store whose last step no release can decode would never be opened again."""
    log = make_store()
    head = log.head()
    record = Edit(
        step=1, parent=0, previous=head.chain, time="t", weights_digest="w", live_digest="l",
        reason=5,  # type: ignore[arg-type]
    )  # fmt: skip
    with pytest.raises(StoreError, match="step 1 could not be read back"):
        log.append(record, facts={}, blobs={}, weights=head.weights)
    assert (log.head(), len(log.steps())) == (head, 1)


def test_steps_come_back_after_reopening(make_store: MakeStore, add_step: AddStep) -> None:
    log = make_store()
    added = [add_step(log) for _ in range(4)]
    log.close()
    with EditLog.open(log.path) as again:
        assert again.steps()[1:] == added
        assert again.steps(3) == added[2:]
        assert again.step(2) == added[1]
        assert again.head().step == 4
        assert again.facts(added[2].added) == {small.fact(3).digest: msgspec.json.encode(small.fact(3))}
        assert digest_bytes(again.blob(str(added[3].shift))) == added[3].shift
        assert again.consumed("f" * 32, 2) == [(added[1].added[0], 2)]
        assert again.consumed("f" * 32, 9) == []


def test_each_step_holds_the_digest_of_the_one_before(make_store: MakeStore, add_step: AddStep) -> None:
    log = make_store()
    first = add_step(log)
    chain = log.head().chain
    assert chain == digest_bytes(msgspec.msgpack.encode(first))
    assert add_step(log).previous == chain


def test_former_weights_are_dropped_unless_a_step_names_them(make_store: MakeStore, add_step: AddStep) -> None:
    log = make_store()
    base = str(log.head().weights)
    add_step(log)
    plain = str(log.head().weights)
    assert not log.has_blob(base)
    add_step(log, snapshot=True)
    whole = str(log.head().weights)
    assert not log.has_blob(plain)
    add_step(log)
    assert log.has_blob(whole)


def test_a_step_that_does_not_follow_the_head_is_refused(make_store: MakeStore, add_step: AddStep) -> None:
    log = make_store()
    record = add_step(log)
    with pytest.raises(StoreError, match="step 1 does not follow step 1"):
        log.append(record, facts={}, blobs={})
    late = msgspec.structs.replace(record, step=2)
    with pytest.raises(StoreError, match="does not follow"):
        log.append(late, facts={}, blobs={})
    assert log.head().step == 1


def test_a_refused_step_leaves_nothing_behind(make_store: MakeStore, add_step: AddStep) -> None:
    log = make_store()
    add_step(log)
    head = log.head()
    parts = small.parts("", shift="0" * 32)
    record = Edit(step=2, parent=1, previous=head.chain, time="t", parts=parts, weights_digest="", live_digest="")
    blob = b"some blob"
    with pytest.raises(StoreError, match="names blob 0000"):
        log.append(record, facts={"a" * 32: b"{}"}, blobs={digest_bytes(blob): blob}, weights=None)
    assert log.head() == head
    assert not log.has_blob(digest_bytes(blob))
    with pytest.raises(StoreDamagedError, match="facts/aaaa"):
        log.facts(["a" * 32])


def test_a_missing_step_is_wrong_usage(make_store: MakeStore) -> None:
    log = make_store()
    for step in (-1, 1, 99):
        with pytest.raises(UsageError, match=f"no step {step}; the log holds steps 0 to 0"):
            log.step(step)


def test_only_create_creates(tmp_path: Path, make_store: MakeStore) -> None:
    with pytest.raises(StoreError, match="no store at"):
        EditLog.open(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    log = make_store()
    with pytest.raises(UsageError, match="already there"):
        make_store()
    assert sorted(p.name for p in tmp_path.iterdir()) == [log.path.name]


def test_keys_that_fail_half_way_leave_nothing_behind(make_store: MakeStore) -> None:
    log = make_store()
    head = log.head()
    record = Reconsolidate(step=1, parent=0, previous=head.chain, time="t", weights_digest="", live_digest="")

    def keys() -> Iterator[bytes]:
        yield b"first"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        log.append(record, facts={}, blobs={}, weights=head.weights, keys=keys)
    assert (log.head(), log.has_blob(digest_bytes(b"first"))) == (head, False)
    log.append(record, facts={}, blobs={}, weights=head.weights, keys=lambda: [b"first"])
    assert log.step(1).key_blobs == (digest_bytes(b"first"),)


def test_a_reader_keeps_its_handle_while_the_log_grows(make_store: MakeStore, add_step: AddStep) -> None:
    log = make_store()
    with EditLog.open(log.path, read_only=True) as reader:
        assert reader.read_only
        add_step(log)
        assert reader.head().step == 1
        with pytest.raises(StoreError, match="open read-only"):
            add_step(reader)


def test_a_second_writer_in_the_same_process_is_refused(make_store: MakeStore) -> None:
    log = make_store()
    with pytest.raises(StoreLockedError, match="being written by process"):
        EditLog.open(log.path, timeout=0.1)


def test_a_closed_log_says_so(make_store: MakeStore, add_step: AddStep) -> None:
    log = make_store()
    log.close()
    log.close()
    with pytest.raises(StoreError, match="is closed"):
        log.head()
    with pytest.raises(StoreError, match="is closed"):
        log.steps()


def test_a_failed_creation_leaves_nothing(tmp_path: Path) -> None:
    record = Init(step=0, parent=-1, previous="", time="", fixed="0" * 32, weights_digest="", live_digest="")
    with pytest.raises(StoreError, match="names blob"):
        EditLog.create(tmp_path / "store", record, blobs={})
    assert list(tmp_path.iterdir()) == []


def test_an_unreadable_head_file_is_damage(make_store: MakeStore) -> None:
    log = make_store()
    log.close()
    for data in (b"", b"{", json.dumps({"step": "x"}).encode(), b"\xff"):
        (log.path / "HEAD").write_bytes(data)
        with pytest.raises(StoreDamagedError, match="HEAD cannot be read"):
            EditLog.open(log.path)
