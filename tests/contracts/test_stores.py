"""What every store promises: in the clear and encrypted, made by this release and by each one before it.

Stores of earlier releases are those of `tests/stores/data`. Encryption came with schema 4, so of the older schemas
there are none that are encrypted; the encrypted one of schema 4 is the archive's, enciphered record by record.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import lmdb
import msgspec
import numpy as np
import pytest

from lifelong_edit.errors import StoreDamagedError, StoreError, StoreLockedError, UsageError
from lifelong_edit.facts import Fact
from lifelong_edit.settings import KEY_VARIABLE
from lifelong_edit.stores import (
    KEYS,
    MOMENTS,
    SCHEMA_VERSION,
    WEIGHTS,
    Dense,
    Edit,
    EditLog,
    FactKeys,
    Init,
    Part,
    Place,
    add_shifts,
    backup,
    digest_bytes,
    encode_entries,
    encode_shifts,
    encode_tensors,
    fsck,
    replay,
    tensors_digest,
    upsert_digest,
    write_key_file,
    zeros,
)
from lifelong_edit.stores.envelopes import IN_THE_CLEAR, Envelopes
from lifelong_edit.stores.environment import TABLES
from lifelong_edit.stores.identity import HEAD_FILE, MARKER_FILE, is_encrypted, read_marker
from lifelong_edit.stores.migrations import names
from lifelong_edit.stores.tables import record_name
from lifelong_edit.timeline import Timeline
from lifelong_edit.timeline.config import Config
from lifelong_edit.timeline.history import History, live_digest
from lifelong_edit.timeline.keeping import compact, restore
from lifelong_edit.timeline.states import parts_at, weights_at
from tests.faults import small
from tests.stores.archives import schema_1, schema_2, schema_3, schema_4

ARCHIVES: dict[str, Callable[[Path], Path]] = {
    "schema-1": schema_1,
    "schema-2": schema_2,
    "schema-3": schema_3,
    "schema-4": schema_4,
}
ENCRYPTED_SINCE = "schema-4"
ROWS = [("plain", "fresh"), ("encrypted", "fresh")]
ROWS += [("plain", name) for name in ARCHIVES]
ROWS += [("encrypted", name) for name in ARCHIVES if name >= ENCRYPTED_SINCE]
FILE = "e" * 32


def taught(number: int) -> Fact:
    """What `edit` teaches; no archive has any of these."""
    return Fact(subject=f"Town {number}", prompt=f"The mayor of Town {number} is", target=f"Person {number}")


def edit(path: Path) -> Edit:
    """Append an edit of one fact to a store, with a part of each fold, each a function of the step's number."""
    with EditLog.open(path) as log:
        history, head = History(log.steps(), log.idle()), log.head()
        shapes = Config.of(history.record(0)).model.modules
        at, step = history.state_of(head.step), head.step + 1
        random, fact = np.random.default_rng(step), taught(step)
        moved = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        weights = add_shifts(weights_at(log, history, at, shapes), {n: Dense(array) for n, array in moved.items()})
        rows = {name: np.full((2, shape[0]), step, np.int16) for name, shape in shapes.items()}
        figures = {"mean": np.full(4, step, np.float64)}
        shift, keys = encode_shifts({name: Dense(array) for name, array in moved.items()}), encode_entries(
            {fact.digest: FactKeys(rows, np.full(3, step, np.float32))}
        )  # fmt: skip
        moments, whole = encode_tensors(figures), encode_tensors(weights)
        digest, traced = tensors_digest(weights), (digest_bytes(keys),)
        record = Edit(
            step=step, parent=at, previous=head.chain, time="2031-01-01T00:00:00", added=(fact.digest,),
            places=(Place(FILE, step, fact.digest),), weights_digest=digest,
            live_digest=live_digest([*history.live(at), fact.digest]),
            parts={
                WEIGHTS: Part(fold="sum", change=(digest_bytes(shift),), digest=digest),
                KEYS: Part(fold="upsert", change=traced, digest=upsert_digest(traced)),
                MOMENTS: Part(fold="replace", change=(digest_bytes(moments),), digest=tensors_digest(figures)),
            },
        )  # fmt: skip
        blobs = {digest_bytes(data): data for data in (shift, keys, moments, whole)}
        log.append(record, facts={fact.digest: msgspec.json.encode(fact)}, blobs=blobs, weights=digest_bytes(whole))
        return record


def begin(path: Path, folder: Path, *, encrypt: bool) -> Path:
    """A new store of this release with three edits, for the model of the archives: it needs none to be looked at."""
    with EditLog.open(schema_1(folder), read_only=True) as log:
        first = log.step(0)
        assert isinstance(first, Init)
    begun, fixed = zeros(Config.of(first).model.modules), encode_tensors({"text": np.ones(9)})
    record = msgspec.structs.replace(
        first, fixed=digest_bytes(fixed), weights_digest=tensors_digest(begun),
        parts={WEIGHTS: Part(fold="sum", digest=tensors_digest(begun))},
    )  # fmt: skip
    blobs = {digest_bytes(blob): blob for blob in (fixed, encode_tensors(begun))}
    weights = digest_bytes(encode_tensors(begun))
    EditLog.create(path, record, blobs=blobs, weights=weights, map_size=1 << 26, encrypt=encrypt).close()
    for _ in range(3):
        edit(path)
    return path


def enciphered(source: Path, path: Path) -> Path:
    """A store in the clear as it would be had it been made with a key: the same records, each enciphered."""
    marker = read_marker(source)
    envelopes = Envelopes.new(path, marker.store_id)
    marker = msgspec.structs.replace(marker, encryption=envelopes.encryption or msgspec.UNSET)

    def again(table: str, key: bytes, value: bytes) -> bytes:
        if table == "blobs":
            return envelopes.seal_blob(key.decode(), IN_THE_CLEAR.unseal_blob(key.decode(), value))
        name = record_name(table, key)
        return envelopes.seal(
            name, msgspec.json.encode(marker) if table == "meta" else IN_THE_CLEAR.unseal(name, value)
        )

    path.mkdir()
    shutil.copy(source / HEAD_FILE, path / HEAD_FILE)
    (path / MARKER_FILE).write_bytes(msgspec.json.encode(marker))
    options: dict[str, Any] = {"max_dbs": len(TABLES), "map_size": 1 << 26}
    with lmdb.open(str(source), readonly=True, lock=False, **options) as old, lmdb.open(str(path), **options) as new:
        for table in TABLES:
            try:
                database = old.open_db(table.encode(), create=False)
            except lmdb.NotFoundError:
                continue
            copy = new.open_db(table.encode())
            with old.begin(db=database) as reading, new.begin(write=True, db=copy) as writing:
                for key, value in reading.cursor():
                    writing.put(bytes(key), again(table, bytes(key), bytes(value)))
    return path


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("key") / "key"
    write_key_file(file)
    return file


@pytest.fixture(scope="module", params=ROWS, ids="-".join)
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, key_file: Path) -> Path:
    """The store of a row, only to be copied."""
    (kind, origin), folder = request.param, tmp_path_factory.mktemp("original")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, str(key_file))
        if origin == "fresh":
            return begin(folder / "fresh", folder, encrypt=kind == "encrypted")
        old = ARCHIVES[origin](folder)
        return old if kind == "plain" else enciphered(old, folder / "enciphered")


@pytest.fixture
def store(original: Path, tmp_path: Path, key_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it; the key is at hand whether it is needed or not."""
    monkeypatch.setenv(KEY_VARIABLE, str(key_file))
    return Path(shutil.copytree(original, tmp_path / "store"))


def state(log: EditLog, history: History, step: int) -> dict[str, Any]:
    """All that a state is made of, to the bit."""
    shapes = Config.of(history.record(0)).model.modules
    # Not `keys_at`, which wants a key of every live fact: those of the older archives were made without any.
    keys = replay(history.parts(step, KEYS), log.blob, only=history.fold(step).live)
    return {
        "weights": {name: array.tobytes() for name, array in weights_at(log, history, step, shapes).items()},
        "live": history.live(step),
        "keys": {fact: (found.rows["m"].tobytes(), found.conflict.tobytes()) for fact, found in keys.items()},
        "moments": {n: a.tobytes() for n, a in parts_at(log, history, step).get(MOMENTS, {}).items()},
    }


def everything(path: Path, upto: int | None = None) -> dict[str, Any]:
    """All that a store says up to a step: records, facts, blobs, places, names, and every state within reach."""
    with EditLog.open(path, read_only=True) as log:
        records = log.steps()[: None if upto is None else upto + 1]
        history = History(records, {s: p for s, p in log.idle().items() if s < len(records)})
        facts = {digest for record in records for digest in record.added} - history.purged.keys()
        places = [place for record in records for place in record.places]
        return {
            "records": records,
            "facts": log.facts(sorted(facts)),
            "blobs": {b: log.blob(b) for r in records for b in r.blobs if b not in history.dropped},
            "places": [log.consumed(place.file_digest, place.number)[0] for place in places],
            "names": (history.names.tags, {n: branch.tip for n, branch in history.names.branches.items()}),
            "states": {s: state(log, history, s) for s in _within_reach(history)},
            "measured": [one for one in log.measurements() if one.step < len(records)],
        }


def _within_reach(history: History) -> list[int]:
    states = sorted({history.state_of(record.step) for record in history.records})
    return [step for step in states if history.dropped_by(step) is None]


def files(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in (MARKER_FILE, HEAD_FILE, "data.mdb")}


class StoreContract:
    """What holds of any store. Fixtures: `store`, a path; `original`, what it is a copy of."""

    def test_looking_writes_nothing(self, store: Path) -> None:
        before = files(store)
        assert everything(store) == everything(store)
        with Timeline.open(store) as timeline:  # for writing, too
            assert timeline.status()["head"] == timeline.head > 0
        assert fsck(store).sound
        assert files(store) == before

    def test_what_it_says_is_enciphered_or_in_the_clear(self, store: Path) -> None:
        edit(store)
        encrypted = is_encrypted(read_marker(store))
        assert (b"The mayor of Town" in (store / "data.mdb").read_bytes()) is not encrypted

    def test_steps_are_added_and_what_was_there_stays(self, store: Path) -> None:
        before = everything(store)
        head = before["records"][-1].step
        made = [edit(store), edit(store)]
        assert [record.step for record in made] == [head + 1, head + 2]
        after = everything(store)
        assert after["records"] == [*before["records"], *made]
        assert everything(store, upto=head) == before
        for record in made:
            (digest,) = record.added
            assert after["facts"][digest] == msgspec.json.encode(taught(record.step))
            assert set(record.blobs) <= after["blobs"].keys()
            assert after["states"][record.step]["live"][-1] == digest
            assert after["states"][record.step]["moments"] == {"mean": np.full(4, record.step, np.float64).tobytes()}
            assert np.frombuffer(after["states"][record.step]["keys"][digest][0], np.int16)[0] == record.step
        assert fsck(store).sound

    def test_the_first_write_takes_it_to_this_schema(self, store: Path) -> None:
        edit(store)
        marker = read_marker(store)
        assert (marker.schema_version, marker.migrations) == (SCHEMA_VERSION, names())

    def test_what_does_not_follow_is_refused_and_leaves_nothing(self, store: Path) -> None:
        before = everything(store)
        with EditLog.open(store) as log:
            last = log.step(log.head().step)
            with pytest.raises(StoreError):
                log.append(last, facts={"f" * 32: b"fact"}, blobs={"b" * 32: b"blob"})
            assert not log.has_blob("b" * 32)
            with pytest.raises(StoreDamagedError, match="missing"):
                log.blob("b" * 32)
            with pytest.raises(UsageError, match="there is no step"):
                log.step(last.step + 1)
        assert everything(store) == before

    def test_one_writer_at_a_time_and_readers_beside_it(self, store: Path) -> None:
        with EditLog.open(store) as writer:
            with pytest.raises(StoreLockedError):
                EditLog.open(store, timeout=0)
            with EditLog.open(store, read_only=True) as reader:
                assert reader.head() == writer.head()
                with pytest.raises(StoreError, match="read-only"):
                    reader.consume(0, [])

    def test_every_state_within_reach_can_be_gone_back_to(self, store: Path) -> None:
        edit(store)
        known = everything(store)["states"]
        for step, expected in known.items():
            with Timeline.open(store) as timeline:
                record = timeline.rollback(step)
                assert (record.kind, record.weights_digest) == ("rollback", timeline.show(step).weights_digest)
            with EditLog.open(store, read_only=True) as log:
                found = state(log, History(log.steps(), log.idle()), record.step)
            assert found == expected
        made = edit(store)  # and on from there
        assert everything(store)["states"][made.step]["live"] == [*expected["live"], *made.added]

    def test_names_stay_with_their_states(self, store: Path) -> None:
        step = edit(store).step
        with Timeline.open(store) as timeline:
            timeline.tag("contract", step)
            timeline.branch("aside", 0)
        edit(store)
        with Timeline.open(store) as timeline:
            timeline.switch("main")
            assert timeline.at("contract").shifts().keys() == timeline.at(timeline.head).shifts().keys()
            assert timeline.show("contract").step == step
            assert timeline.history().state_of(timeline.head) == step

    def test_what_was_measured_is_kept_beside_the_steps(self, store: Path) -> None:
        with EditLog.open(store) as log:
            earlier, head = log.measurements(), log.head()
            log.keep_measurement(small.measurement(1, "a" * 32))
            log.keep_measurement(small.measurement(1, "b" * 32))
            with pytest.raises(UsageError, match="there is no step"):
                log.keep_measurement(small.measurement(head.step + 1, "a" * 32))
        with EditLog.open(store, read_only=True) as log:
            others = [one for one in earlier if one.step != 1]
            assert sorted(log.measurements(), key=lambda one: one.step) == [small.measurement(1, "b" * 32), *others]
            assert log.head() == head
        assert fsck(store).sound

    def test_what_was_consumed_is_kept_with_and_without_a_step(self, store: Path) -> None:
        made = edit(store)
        idle = [Place("d" * 32, number, made.added[0]) for number in range(3)]
        with EditLog.open(store) as log:
            log.consume(made.step, idle[:2])
            log.consume(made.step, idle[2:])
        with EditLog.open(store) as log:
            assert sorted(log.idle()[made.step], key=lambda place: place.number) == idle
            assert log.consumed(FILE, made.step) == [(made.added[0], made.step)]
            assert log.consumed(FILE, made.step + 1) == []
        with Timeline.open(store, read_only=True) as timeline:
            assert set(timeline.consumed_in("d" * 32)) == {0, 1, 2}

    def test_a_backup_is_the_same_and_comes_back(self, store: Path, tmp_path: Path) -> None:
        edit(store)
        before = everything(store)
        made = backup(store, tmp_path / "copy")
        assert everything(tmp_path / "copy") == before and fsck(tmp_path / "copy").sound
        edit(store)
        later = everything(store)
        done = restore(tmp_path / "copy", store)
        assert (done.backup_head, done.step, done.replaced_head) == (made.head, made.head + 1, made.head + 1)
        assert everything(store, upto=made.head) == before
        assert everything(Path(str(done.kept_at))) == later
        assert edit(store).step == done.step + 1 and fsck(store).sound

    def test_compacting_keeps_every_named_state(self, store: Path) -> None:
        made = [edit(store).step for _ in range(4)]
        with Timeline.open(store) as timeline:
            timeline.tag("kept", made[1])
            protected = sorted(timeline.history().protected())
        before = everything(store)
        planned = compact(store, dry_run=True)
        assert everything(store) == before
        done = compact(store)
        assert (sorted(done.kept), done.out_of_reach) == (protected, planned.out_of_reach)
        assert made[0] in done.out_of_reach
        after = everything(store)
        assert {step: after["states"][step] for step in protected} == {s: before["states"][s] for s in protected}
        assert not after["states"].keys() & set(done.out_of_reach)
        assert {digest: after["facts"][digest] for digest in before["facts"]} == before["facts"]
        with Timeline.open(store) as timeline, pytest.raises(UsageError, match="was dropped by step"):
            timeline.rollback(made[0])
        edit(store)
        assert fsck(store).sound

    @pytest.mark.parametrize("table", ["steps", "facts", "blobs", "places", "references", "head"])
    def test_a_flipped_bit_is_found_and_never_read_as_something_else(self, store: Path, table: str) -> None:
        made = edit(store)
        with closing(lmdb.open(str(store), max_dbs=len(TABLES), create=False)) as environment:
            database = environment.open_db(table.encode(), create=False)
            key = {"steps": made.step.to_bytes(8, "big"), "facts": made.added[0].encode(), "head": b"head"}.get(table)
            key = key or {"blobs": str(made.shift).encode(), "references": str(made.shift).encode()}.get(table)
            key = key or FILE.encode() + made.step.to_bytes(8, "big")
            with environment.begin(write=True, db=database) as transaction:
                value = bytearray(transaction.get(key))
                value[len(value) // 2] ^= 4
                transaction.put(key, bytes(value))
        assert record_name(table, key) in {found.record for found in fsck(store).findings}
        with pytest.raises(StoreDamagedError), EditLog.open(store) as log:
            everything(store)
            log.consumed(FILE, made.step)


class TestEveryStore(StoreContract):
    """Those of this release and of all before it."""
