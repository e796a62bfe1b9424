"""The edit log: one transaction per step, verified when read, refused when it is not what was acknowledged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import msgspec
import pytest

from lifelong_edit.errors import StoreDamagedError, StoreError, StoreLockedError, UsageError
from lifelong_edit.stores import SCHEMA_VERSION, EditLog, StepRecord, digest_bytes
from lifelong_edit.stores.environment import TABLES

AddStep = Callable[..., StepRecord]
MakeStore = Callable[..., EditLog]


def test_steps_come_back_after_reopening(make_store: MakeStore, add_step: AddStep) -> None:
    log = make_store()
    added = [add_step(log) for _ in range(4)]
    log.close()
    with EditLog.open(log.path) as again:
        assert again.steps()[1:] == added
        assert again.steps(3) == added[2:]
        assert again.step(2) == added[1]
        assert again.head().step == 4
        assert again.facts(added[2].added) == {added[2].added[0]: b'{"n":3}'}
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
    record = StepRecord(
        step=2, kind="edit", parent=1, previous=head.chain, time="t", shift="0" * 32, weights_digest="", live_digest=""
    )
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


@pytest.mark.parametrize("table", [t for t in TABLES if t != "references"])
def test_a_flipped_bit_in_any_table_is_named(make_store: MakeStore, add_step: AddStep, table: str) -> None:
    log = make_store()
    record = add_step(log)
    log.close()
    _flip(log.path, table)

    def read_everything() -> None:
        with EditLog.open(log.path) as again:
            again.steps()
            again.facts(record.added)
            again.consumed("f" * 32, 1)
            for digest in (str(again.head().weights), str(record.shift)):
                again.blob(digest)

    with pytest.raises(StoreDamagedError, match="blob" if table == "blobs" else f"{table}/"):
        read_everything()


def test_a_flipped_reference_count_stops_the_next_step(make_store: MakeStore, add_step: AddStep) -> None:
    log = make_store()
    record = add_step(log)
    log.close()
    _flip(log.path, "references", str(record.shift).encode())
    with EditLog.open(log.path) as again:
        head = again.head()
        after = msgspec.structs.replace(record, step=2, previous=head.chain, parent=1)
        with pytest.raises(StoreDamagedError, match="references/"):
            again.append(after, facts={}, blobs={}, weights=head.weights)


def _flip(path: Path, table: str, key: bytes | None = None) -> None:
    """Change one bit of a stored value as a bad disk would: LMDB itself does not notice."""
    env = lmdb.open(str(path), map_size=0, max_dbs=len(TABLES), create=False)
    tables = {name: env.open_db(name.encode(), create=False) for name in TABLES}
    with env.begin(write=True, db=tables[table]) as t:
        items = [(bytes(k), bytes(v)) for k, v in t.cursor() if key in (None, bytes(k))]
        assert items
        for name, value in items:
            t.put(name, value[:-1] + bytes([value[-1] ^ 4]))
    env.close()


def test_a_crash_between_commit_and_head_file_is_mended(make_store: MakeStore, add_step: AddStep) -> None:
    log = make_store()
    add_step(log)
    before = (log.path / "HEAD").read_bytes()
    add_step(log)
    log.close()
    (log.path / "HEAD").write_bytes(before)  # as if killed right after the transaction
    with EditLog.open(log.path, read_only=True) as reader:
        assert reader.head().step == 2
    assert (log.path / "HEAD").read_bytes() == before
    with EditLog.open(log.path) as writer:
        assert writer.head().step == 2
    assert json.loads((log.path / "HEAD").read_bytes())["step"] == 2


def test_an_older_copy_in_its_place_is_noticed(make_store: MakeStore, add_step: AddStep, tmp_path: Path) -> None:
    log = make_store()
    add_step(log)
    log.close()
    shutil.copy(log.path / "data.mdb", tmp_path / "old.mdb")
    with EditLog.open(log.path) as again:
        add_step(again)
    shutil.copy(tmp_path / "old.mdb", log.path / "data.mdb")
    with pytest.raises(StoreDamagedError, match="ends at step 1, but step 2 was acknowledged"):
        EditLog.open(log.path)


def test_another_history_of_the_same_store_is_noticed(make_store: MakeStore, add_step: AddStep, tmp_path: Path) -> None:
    log = make_store()
    log.close()
    shutil.copytree(log.path, tmp_path / "twin")
    with EditLog.open(log.path) as one:
        add_step(one)
    with EditLog.open(tmp_path / "twin") as two:
        add_step(two, size=10)
        add_step(two)
    shutil.copy(tmp_path / "twin" / "data.mdb", log.path / "data.mdb")
    with pytest.raises(StoreDamagedError, match="another history"):
        EditLog.open(log.path)


def test_files_of_two_stores_are_not_mixed(make_store: MakeStore) -> None:
    one, two = make_store("one"), make_store("two")
    one.close(), two.close()
    for name in ("data.mdb", "HEAD", "store.json"):
        kept = (one.path / name).read_bytes()
        shutil.copy(two.path / name, one.path / name)
        with pytest.raises(StoreDamagedError, match="mixes files of several stores"):
            EditLog.open(one.path)
        (one.path / name).write_bytes(kept)
    EditLog.open(one.path).close()


@pytest.mark.parametrize(("name", "match"), [("HEAD", "HEAD is missing"), ("store.json", r"store\.json is missing")])
def test_a_missing_file_is_named(make_store: MakeStore, name: str, match: str) -> None:
    log = make_store()
    log.close()
    (log.path / name).unlink()
    with pytest.raises(StoreDamagedError, match=match):
        EditLog.open(log.path)


def test_a_newer_schema_is_refused_with_both_versions(make_store: MakeStore) -> None:
    log = make_store()
    log.close()
    marker = json.loads((log.path / "store.json").read_bytes())
    (log.path / "store.json").write_text(json.dumps({**marker, "schema_version": 7, "unheard_of": True}))
    with pytest.raises(StoreError, match=f"schema version 7, but this release reads up to {SCHEMA_VERSION}"):
        EditLog.open(log.path)


def test_a_full_map_grows_and_the_whole_step_is_written(make_store: MakeStore, add_step: AddStep) -> None:
    log = make_store(map_size=32 * 4096)
    for _ in range(3):
        record = add_step(log, size=30_000)  # 480 kB each, several times the map
    assert log.steps()[3] == record
    assert len(log.blob(str(record.shift))) > 480_000


def test_keys_are_written_one_by_one_and_named_in_the_record(make_store: MakeStore) -> None:
    """Each blob is in the transaction before the next is made; a full map makes them all again."""
    log = make_store(map_size=64 * 4096)
    record = StepRecord(
        step=1, kind="reconsolidate", parent=0, previous=log.head().chain, time="t", weights_digest="", live_digest=""
    )
    begun = []

    def keys() -> Iterator[bytes]:
        begun.append(True)
        yield from (bytes([number]) * 50_000 for number in range(8))

    log.append(record, facts={}, blobs={}, weights=log.head().weights, keys=keys)
    assert len(begun) == 2
    found = log.step(1)
    assert [log.blob(digest)[0] for digest in found.key_blobs] == list(range(8))
    assert set(found.key_blobs) == set(found.blobs)
    assert log.head().chain == digest_bytes(msgspec.msgpack.encode(found))


def test_keys_that_fail_half_way_leave_nothing_behind(make_store: MakeStore) -> None:
    log = make_store()
    head = log.head()
    record = StepRecord(
        step=1, kind="reconsolidate", parent=0, previous=head.chain, time="t", weights_digest="", live_digest=""
    )

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
