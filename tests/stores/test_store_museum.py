"""A museum of damaged stores: what was done to each, what `fsck` has to say of it, and what a repair may leave.

All exhibits are copies of one store of eight steps: six edits, of which 3 and 6 are stored whole, and a rollback to 5,
whose ΔW the head keeps whole. A repair is judged by the database's content, record by record: what it mended is what
was there before the damage, and what it left is as the damage left it.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb
import msgspec
import numpy as np
import pytest

from lifelong_edit.errors import StoreDamagedError, StoreError, StoreLockedError
from lifelong_edit.facts import Fact
from lifelong_edit.settings import KEY_VARIABLE
from lifelong_edit.stores import (
    Dense,
    Edit,
    EditLog,
    Init,
    KeyIndex,
    Place,
    Rollback,
    backup,
    digest_bytes,
    encode_shifts,
    encode_tensors,
    fsck,
    seal,
    tensors_digest,
    write_key_file,
)
from lifelong_edit.stores.envelopes import Envelopes
from lifelong_edit.stores.environment import TABLES
from lifelong_edit.stores.folding import Weights, add_shifts, zeros
from lifelong_edit.stores.identity import is_encrypted, read_marker
from lifelong_edit.stores.pages import PageFile
from lifelong_edit.stores.tables import record_name
from tests.faults import small

Key = tuple[str, bytes]
Content = dict[Key, bytes]
SHAPES = {"m": (40, 6), "n": (5, 40)}
FILE = "f" * 32


def build(path: Path, *, encrypt: bool = False) -> None:
    """The store that all exhibits begin as."""
    random, states = np.random.default_rng(0), {0: zeros(SHAPES)}
    fixed, begun = encode_tensors({"text": random.random(50)}), encode_tensors(states[0])
    digest = tensors_digest(states[0])
    record = Init(
        step=0, parent=-1, previous="", time="t", fixed=digest_bytes(fixed), live_digest="",
        parts=small.parts(digest), weights_digest=digest, provenance={"config": {"model": {"modules": SHAPES}}},
    )  # fmt: skip
    blobs = {digest_bytes(blob): blob for blob in (fixed, begun)}
    with EditLog.create(
        path, record, blobs=blobs, weights=digest_bytes(begun), map_size=1 << 30, encrypt=encrypt
    ) as log:
        for number in range(1, 7):
            shift = {name: random.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
            states[number] = add_shifts(states[number - 1], {name: Dense(array) for name, array in shift.items()})
            append(log, states[number], number, shift)
        append(log, states[5], 7, None)
        log.keep_measurement(small.measurement(4))
        log.consume(5, [Place("e" * 32, 0, fact(1).digest)])
        index = KeyIndex(3, lambda facts: np.ones((len(facts), 3), np.float32))
        index.add([fact(1).digest], np.ones((1, 3), np.float32))
        index.save(path / "index", log.head().chain, log.envelopes)


def fact(number: int) -> Fact:
    return Fact(subject=f"Town {number}", prompt=f"The mayor of Town {number} is", target=f"Person {number}")


def append(log: EditLog, weights: Weights, number: int, shift: Weights | None) -> None:
    whole, head, digest = encode_tensors(weights), log.head(), tensors_digest(weights)
    common: dict[str, Any] = {"step": number, "previous": head.chain, "time": "t", "live_digest": ""}
    if shift is None:
        record = Rollback(parent=5, weights_digest=digest, **common)
        log.append(record, facts={}, blobs={digest_bytes(whole): whole}, weights=digest_bytes(whole))
        return
    blobs = {"shift": encode_shifts({name: Dense(array) for name, array in shift.items()}), "keys": b"keys %d" % number}
    blobs |= {"snapshot": whole} if number in (3, 6) else {}
    added = fact(number)
    record = Edit(
        parent=number - 1, added=(added.digest,), places=(Place(FILE, number, added.digest),), weights_digest=digest,
        parts=small.parts(digest, **{part: digest_bytes(data) for part, data in blobs.items()}), **common,
    )  # fmt: skip
    kept = {digest_bytes(data): data for data in (*blobs.values(), whole)}
    log.append(record, facts={added.digest: msgspec.json.encode(added)}, blobs=kept, weights=digest_bytes(whole))


def content(store: Path) -> Content:
    """Every record of a database, as it is stored."""
    found: Content = {}
    with lmdb.open(str(store), max_dbs=len(TABLES), readonly=True, lock=False, create=False) as environment:
        for table in TABLES:
            try:
                database = environment.open_db(table.encode(), create=False)
            except lmdb.NotFoundError:
                continue
            with environment.begin(db=database) as transaction:
                found |= {(table, bytes(key)): bytes(value) for key, value in transaction.cursor()}
    return found


def poke(store: Path, changes: dict[Key, bytes | None]) -> None:
    """Put records into a database as they are given, None to take one away."""
    with lmdb.open(str(store), max_dbs=len(TABLES), create=False, map_size=1 << 30) as environment:
        databases = {table: environment.open_db(table.encode(), create=False) for table in TABLES}
        with environment.begin(write=True) as transaction:
            for (table, key), value in changes.items():
                if value is None:
                    assert transaction.delete(key, db=databases[table])
                else:
                    transaction.put(key, value, db=databases[table])


@pytest.fixture(scope="module", params=["plain", "encrypted"])
def original(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("museum")
    write_key_file(folder / "key")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, str(folder / "key"))
        build(folder / "store", encrypt=request.param == "encrypted")
        yield folder / "store"


def envelopes(store: Path) -> Envelopes:
    """What takes the values of a store out of their envelopes and puts them in."""
    return Envelopes.of(store, read_marker(store))


def meaning(found: Content, within: Envelopes) -> dict[Key, object]:
    """What records say: encrypted again, the same reads differently. Of damaged ones, how they read."""

    def of(table: str, key: bytes, value: bytes) -> object:
        try:
            if table == "blobs":
                return within.unseal_blob(key.decode(), value)
            return within.unseal(record_name(table, key), value)
        except StoreDamagedError:
            return {"damaged": value}

    return {(table, key): of(table, key, value) for (table, key), value in found.items()}


# -- what can be done to a store


def flip(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8 % len(data)] ^= 1 << bit % 8
    return bytes(changed)


def blob_of(store: Path, step: int, part: str) -> bytes:
    with EditLog.open(store, read_only=True) as log:
        digest = log.head().weights if part == "weights" else getattr(log.step(step), part)
    return str(digest).encode()


def flipped(table: str, key: bytes, bit: int = 333) -> Callable[[Path], None]:
    return lambda store: poke(store, {(table, key): flip(content(store)[table, key], bit)})


def junk(table: str, key: bytes) -> Callable[[Path], None]:
    return lambda store: poke(store, {(table, key): b"?" * len(content(store)[table, key])})


def gone(table: str, key: bytes) -> Callable[[Path], None]:
    return lambda store: poke(store, {(table, key): None})


def blob_flipped(step: int, part: str) -> Callable[[Path], None]:
    return lambda store: flipped("blobs", blob_of(store, step, part), 4321)(store)


def blob_junk(step: int, part: str) -> Callable[[Path], None]:
    return lambda store: junk("blobs", blob_of(store, step, part))(store)


def blob_gone(step: int, part: str) -> Callable[[Path], None]:
    return lambda store: gone("blobs", blob_of(store, step, part))(store)


def file_gone(name: str) -> Callable[[Path], None]:
    return lambda store: (store / name).unlink()


def file_is(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda store: (store / name).write_bytes(data) and None


def no_envelope(number: int) -> Callable[[Path], None]:
    key = ("steps", step(number))
    return lambda store: poke(store, {key: bytes(16) + content(store)[key][16:]})


def swapped(store: Path) -> None:
    found, one, other = content(store), ("steps", step(1)), ("steps", step(2))
    poke(store, {one: found[other], other: found[one]})


def counted_wrong(store: Path) -> None:
    key = blob_of(store, 1, "shift")
    poke(store, {("references", key): seal(f"references/{key.decode()}", (7).to_bytes(8, "big"))})


def counted_for_nobody(store: Path) -> None:
    key = b"0" * 32
    poke(store, {("references", key): seal(f"references/{key.decode()}", (7).to_bytes(8, "big"))})


def written_anew(store: Path) -> None:
    """A step with other words and an envelope that fits them: only the chain tells."""
    payload = envelopes(store).unseal("steps/2", content(store)["steps", step(2)])
    changed = msgspec.msgpack.decode(payload) | {"reason": "because"}
    poke(store, {("steps", step(2)): envelopes(store).seal("steps/2", msgspec.msgpack.encode(changed))})


def fact_is(payload: bytes) -> Callable[[Path], None]:
    """Another text for fact 3, in an envelope that fits it: only the fact's own digest tells."""
    key = fact(3).digest.encode()
    return lambda store: poke(store, {("facts", key): envelopes(store).seal(f"facts/{key.decode()}", payload)})


def orphaned(store: Path) -> None:
    data = b"nobody's"
    poke(store, {("blobs", digest_bytes(data).encode()): envelopes(store).seal_blob(digest_bytes(data), data)})


def older_copy(store: Path) -> None:
    """The database as it was before step 7, with today's HEAD."""
    sixth = envelopes(store).unseal("steps/6", content(store)["steps", step(6)])
    head = msgspec.msgpack.encode({"step": 6, "chain": digest_bytes(sixth), "weights": None})
    poke(store, {("steps", step(7)): None, ("head", b"head"): seal("head/head", head)})


def older_copy_without_head(store: Path) -> None:
    older_copy(store)
    poke(store, {("head", b"head"): None})


def of_another_store(store: Path) -> None:
    build(store.with_name("another"), encrypt=is_encrypted(read_marker(store)))
    shutil.copyfile(store.with_name("another") / "data.mdb", store / "data.mdb")
    shutil.rmtree(store.with_name("another"))


def truncated(length: int) -> Callable[[Path], None]:
    return lambda store: os.truncate(store / "data.mdb", length)


def step(number: int) -> bytes:
    return number.to_bytes(8, "big")


PLACE = FILE.encode() + step(4)
DATABASE = "data.mdb"


@dataclass(frozen=True)
class Exhibit:
    """damage: what was done. found: records that `fsck` has to name, by their beginnings, and no others. left: those

    that a repair leaves. unreachable: steps whose weights cannot be had before a repair; after it those in `lost`.
    """

    name: str
    damage: Callable[[Path], None]
    found: tuple[str, ...]
    left: tuple[str, ...] = ()
    unreachable: tuple[int, ...] = ()
    lost: tuple[int, ...] = ()


# Step 5 is within reach in all of them, because the head stands at its state.
MUSEUM = [
    Exhibit("a bit of a step", flipped("steps", step(2)), ("steps/2",), unreachable=(2,)),
    Exhibit("a bit of a step's digest", flipped("steps", step(2), 5), ("steps/2",), unreachable=(2,)),
    Exhibit("a step without its envelope", no_envelope(4), ("steps/4",), unreachable=(4,)),
    Exhibit("the last step without its envelope", no_envelope(7), ("steps/7",), unreachable=(7,)),
    Exhibit("junk for a step", junk("steps", step(4)), ("steps/4",), ("steps/4",), (4,), (4,)),
    Exhibit("a step that is gone", gone("steps", step(2)), ("steps/2",), ("steps/2",), (2,), (2,)),
    Exhibit("two steps that changed places", swapped, ("steps/1", "steps/2"), ("steps/1", "steps/2"), (1, 2), (1, 2)),
    Exhibit("a bit of a fact", flipped("facts", fact(3).digest.encode()), ("facts/",)),
    Exhibit("a bit of a fact's digest", flipped("facts", fact(3).digest.encode(), 0), ("facts/",)),
    Exhibit("junk for a fact", junk("facts", fact(3).digest.encode()), ("facts/",), ("facts/",)),
    Exhibit("a fact that is gone", gone("facts", fact(3).digest.encode()), ("facts/",), ("facts/",)),
    Exhibit("another fact's text", fact_is(msgspec.json.encode(fact(4))), ("facts/",), ("facts/",)),
    Exhibit("a text that is no fact", fact_is(b'{"subject": "Town 3"}'), ("facts/",), ("facts/",)),
    Exhibit("a bit of a shift", blob_flipped(2, "shift"), ("blobs/",), unreachable=(2,)),
    Exhibit("junk for a shift", blob_junk(2, "shift"), ("blobs/",), ("blobs/",), (2,), (2,)),
    Exhibit("a shift that is gone", blob_gone(4, "shift"), ("blobs/",), ("blobs/",), (4,), (4,)),
    Exhibit("junk for a state stored whole", blob_junk(3, "snapshot"), ("blobs/",), unreachable=(3, 4)),
    Exhibit("a state stored whole that is gone", blob_gone(6, "snapshot"), ("blobs/",), unreachable=(6,)),
    Exhibit("junk for the head's weights", blob_junk(7, "weights"), ("blobs/",)),
    Exhibit("the head's weights are gone", blob_gone(7, "weights"), ("blobs/",)),
    Exhibit("junk for keys", blob_junk(2, "keys"), ("blobs/",), ("blobs/",)),
    Exhibit("keys that are gone", blob_gone(2, "keys"), ("blobs/",), ("blobs/",)),
    Exhibit("what init fixed is gone", blob_gone(0, "fixed"), ("blobs/",), ("blobs/",)),
    Exhibit("a blob of nobody's", orphaned, ()),
    Exhibit("no head", gone("head", b"head"), ("head/head",)),
    Exhibit("junk for the head", junk("head", b"head"), ("head/head",)),
    Exhibit("no HEAD", file_gone("HEAD"), ("HEAD",)),
    Exhibit("a torn HEAD", file_is("HEAD", b'{"store_id"'), ("HEAD",)),
    Exhibit("no marker beside the database", file_gone("store.json"), ("store.json",)),
    Exhibit("a torn marker", file_is("store.json", b"{"), ("store.json",)),
    Exhibit("no marker inside", gone("meta", b"marker"), ("meta/marker",)),
    Exhibit("junk for the marker inside", junk("meta", b"marker"), ("meta/marker",)),
    Exhibit("a count that is wrong", counted_wrong, ("references/",)),
    Exhibit("a count of nobody's", counted_for_nobody, ("references/",)),
    Exhibit("a step that was written anew", written_anew, ("steps/3",), ("steps/3",)),
    Exhibit("a place that is gone", gone("places", PLACE), ("places of step 4",)),
    Exhibit("junk for a place", junk("places", PLACE), ("places/", "places of step 4")),
    Exhibit("a damaged key index", file_is("index/keys.faiss", b"?" * 99), ("index",)),
    Exhibit("half a key index", file_gone("index/keys.json"), ("index",)),
    Exhibit("an older copy", older_copy, ("HEAD",), ("HEAD",)),
    Exhibit("an older copy without its head", older_copy_without_head, ("HEAD", "head/head"), ("HEAD", "head/head")),
    Exhibit("another store's database", of_another_store, ("store",), ("store",)),
    Exhibit("a database cut short", truncated(40_960), (DATABASE,), (DATABASE,)),
    Exhibit("an empty database", truncated(0), (DATABASE,), (DATABASE,)),
    Exhibit("a database of zeros", file_is(DATABASE, bytes(65536)), (DATABASE,), (DATABASE,)),
    Exhibit("no database", file_gone(DATABASE), (DATABASE,), (DATABASE,)),
]  # fmt: skip


@pytest.fixture
def store(original: Path, tmp_path: Path) -> Iterator[Path]:
    yield Path(shutil.copytree(original, tmp_path / "store"))


@pytest.mark.parametrize("exhibit", MUSEUM, ids=lambda exhibit: exhibit.name)
def test_museum(exhibit: Exhibit, store: Path) -> None:
    exhibit.damage(store)
    files = {file: file.read_bytes() for file in store.rglob("*") if file.is_file() and file.name != "lock.mdb"}
    report = fsck(store)
    assert names(report.findings, exhibit.found) == set(exhibit.found)
    readable = DATABASE not in exhibit.found and exhibit.found[:1] != ("store",)
    if readable:
        assert tuple(report.unreachable) == exhibit.unreachable or exhibit.damage in (
            older_copy,
            older_copy_without_head,
        )
        assert sorted({*report.reachable, *report.unreachable}) == list(range(report.head + 1))
    assert {file: file.read_bytes() for file in files} == files, "looking changed something"


def names(findings: list[object], expected: tuple[str, ...]) -> set[str]:
    """Which of the expected beginnings the findings have, and every other record whole."""
    records = [str(getattr(finding, "record", "")) for finding in findings]
    return {next((start for start in expected if record.startswith(start)), record) for record in records}


def test_a_fact_that_is_read_as_another_is_named_with_its_step(store: Path) -> None:
    """As one of NaN, which no record holds, was once kept; without the key of an encrypted store nobody can tell."""
    fact_is(msgspec.json.encode(fact(4)))(store)
    (finding,) = fsck(store).findings
    assert (finding.record, finding.steps, finding.intact) == (f"facts/{fact(3).digest}", [3], True)
    assert finding.problem == f"what it holds is read as another fact, of digest {fact(4).digest}"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(KEY_VARIABLE)
        report = fsck(store)
    assert bool(report.findings) == (not is_encrypted(read_marker(store))) and not report.sound


def test_such_a_fact_keeps_no_store_from_being_backed_up(store: Path, tmp_path: Path) -> None:
    """It stands as it was written: a copy loses nothing by it, and whoever is refused one is worse off."""
    fact_is(msgspec.json.encode(fact(4)))(store)
    before = fsck(store).findings
    backup(store, tmp_path / "copy")
    assert fsck(tmp_path / "copy").findings == before != []
    fact_is(b"{")(store)
    with pytest.raises(StoreDamagedError, match="is no fact"):
        backup(store, tmp_path / "another")


@pytest.mark.parametrize("exhibit", MUSEUM, ids=lambda exhibit: exhibit.name)
def test_repair(exhibit: Exhibit, store: Path, original: Path) -> None:
    before, within = content(store), envelopes(original)
    exhibit.damage(store)
    readable = DATABASE not in exhibit.found
    damaged = content(store) if readable else {}
    report = fsck(store, repair=True)
    assert names(report.findings, exhibit.left) == set(exhibit.left)
    assert report.sound == (not exhibit.left)
    if not readable:
        return
    after = content(store)
    if not exhibit.left:
        meant, said = meaning(before, within), meaning(after, within)
        assert {key: value for key, value in said.items() if key in meant} == meant
        with EditLog.open(store) as log:
            assert len(log.steps()) == 8
            assert fsck(store).unreachable == {}
    else:
        meant, said = meaning(before, within), meaning(after, within)
        assert all(after[key] == damaged[key] or said[key] == meant.get(key) for key in damaged)
        assert tuple(report.unreachable) == exhibit.lost or exhibit.found[0] in ("store", "HEAD")
    kept = store / "repairs" / "1.msgpack"
    replaced = after != damaged
    assert kept.exists() == replaced
    if replaced:  # what was replaced can be put back
        for table, key, value in read_all(kept):
            if value is None:
                del after[table, key]
            else:
                after[table, key] = value
        assert after == damaged
    assert fsck(store, repair=True).mended == []


def read_all(file: Path) -> Iterator[tuple[str, bytes, bytes | None]]:
    """What a repair kept: records, each behind its length."""
    data, at = file.read_bytes(), 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 8], "big")
        yield msgspec.msgpack.decode(data[at + 8 : at + 8 + length], type=tuple[str, bytes, bytes | None])
        at += 8 + length


def test_an_intact_store_is_sound_and_left_alone(store: Path) -> None:
    files = {file: file.read_bytes() for file in store.rglob("*") if file.is_file() and file.name != "lock.mdb"}
    report = fsck(store, repair=True)
    assert (report.sound, report.head, report.mended, report.reachable) == (True, 7, [], list(range(8)))
    counts = {"meta": 1, "head": 1, "steps": 8, "facts": 6, "blobs": 16, "references": 15, "places": 7}
    assert report.records == counts | {"measurements": 1}
    assert {file: file.read_bytes() for file in files} == files
    assert not (store / "repairs").exists()


def test_a_free_page_that_is_in_use_is_found(store: Path) -> None:
    """LMDB would write the next step over a record; nothing that can be read differs until then."""
    data = store / "data.mdb"
    before = content(store)
    with PageFile(data) as pages:
        (_, first), *_ = pages.entries(pages.meta.free._replace(name="free"))
        used = pages.meta.main.root
    with data.open("r+b") as file:
        file.seek(first.offset + 8)
        file.write(used.to_bytes(8, sys.byteorder))
    assert content(store) == before
    report = fsck(store, repair=True)
    assert [finding.problem for finding in report.findings] == ["it is in use twice"]
    assert report.findings[0].record.startswith("data.mdb: free pages")


def test_weights_that_cannot_be_proved_are_not_made_up(lived_elsewhere: Path) -> None:
    """What they fold to here is not what was logged elsewhere, near as it may be."""
    blob_gone(0, "weights")(lived_elsewhere)
    before = content(lived_elsewhere)
    report = fsck(lived_elsewhere, repair=True)
    assert [finding.record[:6] for finding in report.findings] == ["blobs/"] and not report.mended
    assert content(lived_elsewhere) == before and not (lived_elsewhere / "repairs").exists()


def test_what_is_no_store_of_ours_is_an_error(store: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no store at"):
        fsck(tmp_path / "nothing")
    marker = msgspec.json.decode((store / "store.json").read_bytes()) | {"schema_version": 99}
    (store / "store.json").write_bytes(msgspec.json.encode(marker))
    with pytest.raises(StoreError, match="schema version 99"):
        fsck(store)


def test_a_store_in_use_is_examined_and_not_repaired(store: Path) -> None:
    (store / "index" / "keys.json").unlink()
    with EditLog.open(store):
        assert not fsck(store).sound
        with pytest.raises(StoreLockedError):
            fsck(store, repair=True, timeout=0.1)
    assert fsck(store, repair=True).sound


SWEEP = """
import random, sys
from pathlib import Path
import lmdb
from lifelong_edit.stores import fsck

store, data = Path(sys.argv[1]), Path(sys.argv[1]) / "data.mdb"
whole, moment = data.read_bytes(), random.Random(0)
def content():
    found = {}
    with lmdb.open(str(store), max_dbs=9, readonly=True, lock=False) as environment:
        for table in sys.argv[2:]:
            with environment.begin(db=environment.open_db(table.encode(), create=False)) as transaction:
                found[table] = list(transaction.cursor())
    return found
expected = content()
flips, told = 0, 0
for page in range(len(whole) // 4096):
    # In the header, the table of entries and the first entry; at the end of the page, where entries begin; anywhere.
    for byte in [*range(0, 40, 3), *range(4096 - 120, 4096, 9), *(moment.randrange(4096) for _ in range(12))]:
        at = page * 4096 + byte
        changed = bytearray(whole)
        changed[at] ^= 1 << moment.randrange(8)
        data.write_bytes(changed)
        flips += 1
        report = fsck(store)
        told += not report.sound
        if report.sound and content() != expected:
            print("unnoticed", at, flush=True)
print("swept", flips, told)
"""


def test_no_flipped_bit_goes_unnoticed_or_kills(store: Path, run_python: Callable[..., str]) -> None:
    """In every page of the file. What is not noticed changes nothing that can be read."""
    *unnoticed, last = run_python(SWEEP, store, *TABLES).splitlines()
    assert not unnoticed
    word, flips, told = last.split()
    assert word == "swept" and int(flips) > 1000 and int(told) > int(flips) / 5
