"""Encrypted stores: no fact and no key in the clear, the same digests, and no key but the right one opens them."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import lmdb
import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from lifelong_edit.errors import StoreDamagedError, StoreError, StoreKeyError, UsageError
from lifelong_edit.settings import KEY_VARIABLE
from lifelong_edit.stores import (
    EditLog,
    Init,
    KeyIndex,
    Place,
    StepRecord,
    backup,
    envelopes,
    fsck,
    require_place,
    write_key_file,
)
from lifelong_edit.stores.envelopes import Cipher
from lifelong_edit.stores.identity import read_marker
from lifelong_edit.timeline import Timeline
from lifelong_edit.timeline.keeping import compact, restore
from tests.faults import running, small
from tests.faults.test_26_encrypted import opens
from tests.stores.conftest import BOTH, SHAPE, Lived

MakeStore = Callable[..., EditLog]
AddStep = Callable[..., StepRecord]
SECRETS = {
    "a fact": Lived.fact(3).prompt.encode(),
    "a fact as in the tables": msgspec.json.encode(Lived.fact(3)),
    "keys on the grid": np.full((2, SHAPE[0]), 3, np.int16).tobytes(),
    "keys of conflicts": np.full((2, 3), 3, np.float32).tobytes(),
    "a state of the editor": np.full(4, 3, np.float64).tobytes(),
    "a reason": b"because of Ada",
    "an author": b"Countess of Lovelace",
    "an answer": b"answer 3",
    "a place": b"quite idle",
}
UNIT = np.full((1, 3), 3**-0.5, np.float32)


@pytest.fixture
def told(lived: Path) -> Path:
    """The store with all that a log may tell: a reason, an author, a measurement, an idle place, a kept index."""
    with Timeline.open(lived, author="Countess of Lovelace") as timeline:
        timeline.tag("why", 8, reason="because of Ada")
    with EditLog.open(lived) as log:
        log.keep_measurement(small.measurement(3))
        log.consume(8, [Place("e" * 32, 0, "quite idle")])
        index = KeyIndex(3, lambda facts: np.repeat(UNIT, len(facts), axis=0))
        index.add([Lived.fact(3).digest], UNIT)
        index.save(lived / "index", log.head().chain, log.envelopes)
    return lived


def everything(folder: Path) -> bytes:
    """Every byte of a folder."""
    return b"".join(file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file())


@BOTH
def test_what_can_be_read_of_its_files(told: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Nothing in an encrypted store, its index, a backup, and what compaction and restoration leave; all in a plain."""
    encrypted = request.node.callspec.params["lived"] == "encrypted"
    backup(told, tmp_path / "copy")
    for folder in (told, tmp_path / "copy"):
        found = {name for name, secret in SECRETS.items() if secret in everything(folder)}
        assert found == (set() if encrypted else set(SECRETS))
    assert (UNIT.tobytes() in everything(told / "index")) != encrypted
    compact(told)
    restore(tmp_path / "copy", told)
    assert len([entry for entry in tmp_path.iterdir() if entry.name.startswith("store.replaced")]) == 1
    assert (SECRETS["a fact"] in everything(tmp_path)) != encrypted


def test_its_digests_are_those_of_a_plain_one(
    make_store: MakeStore, add_step: AddStep, key_file: Path, lived: Path, first_step: Init, tmp_path: Path
) -> None:
    plain, encrypted = make_store("plain"), make_store("encrypted", encrypt=True)
    for log in (plain, encrypted):
        for _ in range(3):
            add_step(log)
        log.keep_measurement(small.measurement(2))
    assert small.content(plain) == small.content(encrypted)
    assert plain.measurements() == encrypted.measurements()
    assert plain.blob_sizes() == encrypted.blob_sizes()
    other = Lived(tmp_path / "other", first_step, encrypt=True).path
    plans = [compact(path, dry_run=True) for path in (lived, other)]
    with Timeline.open(lived, read_only=True) as one, Timeline.open(other, read_only=True) as two:
        assert [r.weights_digest for r in one.log()] == [r.weights_digest for r in two.log()]
    assert len({(str(plan.kept), str(plan.wholes), plan.blobs, plan.bytes) for plan in plans}) == 1


def test_a_plain_marker_says_nothing_of_it(make_store: MakeStore) -> None:
    """Releases that know schema 4 and nothing of encryption can read it."""
    assert b"encrypt" not in (make_store().path / "store.json").read_bytes()


def test_two_records_of_one_text_differ(make_store: MakeStore, key_file: Path) -> None:
    """No nonce comes twice, and no data key."""
    logs = [make_store(name, encrypt=True) for name in "ab"]
    sealed = [log.envelopes.seal("facts/a", b"text") for log in (*logs, *logs)]
    assert len(set(sealed)) == 4
    assert logs[0].envelopes.unseal("facts/a", sealed[0]) == b"text"
    for other in (sealed[1], sealed[3]):
        with pytest.raises(StoreDamagedError, match="facts/a is not what was encrypted under that name"):
            logs[0].envelopes.unseal("facts/a", other)


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 5000])
@pytest.mark.parametrize("whole", [0, 1 << 30])
def test_by_parts_and_at_once(monkeypatch: pytest.MonkeyPatch, size: int, whole: int) -> None:
    """A value that was enciphered the one way is deciphered the other way, and by chunks of any length."""
    cipher, text = Cipher(bytes(32), "a" * 32), os.urandom(size)
    monkeypatch.setattr(envelopes, "_PART", 1000)
    monkeypatch.setattr(envelopes, "WHOLE_BYTES", whole)
    sealed = cipher.encrypt("blobs/a", text)
    assert len(sealed) == size + 12 + 16
    assert AESGCM(bytes(32)).decrypt(sealed[:12], sealed[12:], b"a" * 32 + b"/blobs/a") == text
    for other in (0, 1 << 30):
        monkeypatch.setattr(envelopes, "WHOLE_BYTES", other)
        assert cipher.decrypt("blobs/a", sealed) == text
        for bad in (sealed[:-1], sealed[:11], b"", sealed + b"x", sealed[:20] + b"?" * 9 + sealed[29:]):
            with pytest.raises(StoreDamagedError, match="blobs/a is not what was encrypted under that name"):
                cipher.decrypt("blobs/a", bad)
    for length in (1, 7, 12, 13, 4000):
        chunks = [sealed[at : at + length] for at in range(0, len(sealed), length)]
        assert b"".join(cipher.decrypt_chunks("blobs/a", len(sealed), chunks)) == text


# -- keys


@pytest.fixture
def closed(make_store: MakeStore, add_step: AddStep, key_file: Path) -> Path:
    """An encrypted store of one step."""
    log = make_store(encrypt=True)
    add_step(log)
    log.close()
    return log.path


def test_a_new_key(tmp_path: Path) -> None:
    file = tmp_path / "key"
    write_key_file(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    before = file.read_bytes()
    with pytest.raises(UsageError, match="is already there, and a key is never overwritten"):
        write_key_file(file)
    write_key_file(tmp_path / "other")
    assert file.read_bytes() == before != (tmp_path / "other").read_bytes()
    with pytest.raises(StoreError, match="cannot write a key to"):
        write_key_file(tmp_path / "nowhere" / "key")


def test_no_key_and_wrong_ones(closed: Path, key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = tmp_path / "wrong"
    write_key_file(wrong)
    said = {
        "": "is encrypted, and no key was given; name its file in --key-file or LIFELONG_KEY_FILE",
        str(wrong): "is encrypted, and the key at hand does not open it",
        f"{wrong}{os.pathsep}{wrong}": "is encrypted, and none of the 2 keys at hand opens it",
        str(tmp_path / "nothing"): "cannot read the key file .*: No such file",
    }
    for value, message in said.items():
        monkeypatch.setenv(KEY_VARIABLE, value)
        for attempt in (EditLog.open, lambda path: backup(path, tmp_path / "copy"), lambda path: compact(path)):
            with pytest.raises(StoreKeyError, match=message):
                attempt(closed)
    assert not (tmp_path / "copy").exists()
    monkeypatch.setenv(KEY_VARIABLE, f"{wrong}{os.pathsep}{key_file}")
    with EditLog.open(closed, read_only=True) as log:
        assert small.is_whole(log)


@pytest.mark.parametrize("data", [b"", b"no key", b"0" * 63, b"0" * 65, b"g" * 64, b"0" * 9999, bytes(32)])
def test_a_damaged_key_file(closed: Path, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "damaged").write_bytes(data)
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "damaged"))
    with pytest.raises(StoreKeyError, match=r"damaged holds .* bytes that are no key; expected 64 hexadecimal digits"):
        EditLog.open(closed)
    with pytest.raises(StoreKeyError, match="are no key"):
        require_place(tmp_path / "new", encrypt=True)
    with pytest.raises(StoreKeyError, match="are no key"):
        small.create(tmp_path / "new", encrypt=True)
    assert not (tmp_path / "new").exists()


def test_a_key_that_others_can_read_is_warned_of(
    closed: Path, key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "copy"
    shutil.copy(key_file, copy)
    monkeypatch.setenv(KEY_VARIABLE, str(copy))
    EditLog.open(closed).close()
    assert not caplog.messages
    copy.chmod(0o640)
    for _ in range(2):
        EditLog.open(closed).close()
    assert caplog.messages == [f"the key file {copy} may be used by others than its owner (-rw-r-----); `chmod 600` it"]


def test_the_key_of_another_store_file(closed: Path, key_file: Path, tmp_path: Path) -> None:
    """The markers of another store, whose key is the same, do not open it."""
    with small.create(tmp_path / "other", encrypt=True) as other:
        marker = msgspec.structs.replace(other.marker, store_id=read_marker(closed).store_id)
    (closed / "store.json").write_bytes(msgspec.json.encode(marker))
    EditLog.open(closed, read_only=True).close()  # the database's own marker comes first
    report = fsck(closed)
    assert [(found.record, found.problem[:20]) for found in report.findings] == [("store.json", "it holds the store's")]
    assert fsck(closed, repair=True).sound


# -- another key for the same store


def test_rekey(closed: Path, key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new, copy = tmp_path / "new", tmp_path / "copy"
    write_key_file(new)
    backup(closed, copy)
    with EditLog.open(closed) as log:
        log.rekey(new)
        small.add(log)
    assert opens(closed, new, monkeypatch) and not opens(closed, key_file, monkeypatch)
    assert opens(copy, key_file, monkeypatch) and not opens(copy, new, monkeypatch)


@pytest.mark.parametrize("lived", ["encrypted"], indirect=True)
def test_a_backup_from_before_is_restored_with_its_own_key(
    lived: Path, key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = tmp_path / "new"
    write_key_file(new)
    backup(lived, tmp_path / "copy")
    with EditLog.open(lived) as log:
        log.rekey(new)
    monkeypatch.setenv(KEY_VARIABLE, str(new))
    with pytest.raises(StoreKeyError, match="does not open it"):
        restore(tmp_path / "copy", lived)
    monkeypatch.setenv(KEY_VARIABLE, f"{new}{os.pathsep}{key_file}")
    restore(tmp_path / "copy", lived)
    monkeypatch.setenv(KEY_VARIABLE, str(key_file))
    assert fsck(lived).sound


def test_rekey_of_a_plain_store(make_store: MakeStore, key_file: Path) -> None:
    with pytest.raises(UsageError, match="is not encrypted"):
        make_store().rekey(key_file)


# -- fsck


def poke(store: Path, table: str, key: bytes, change: Callable[[bytes], bytes]) -> None:
    """Change a value of a database as it is stored."""
    with lmdb.open(str(store), max_dbs=9, create=False) as environment:
        database = environment.open_db(table.encode(), create=False)
        with environment.begin(write=True, db=database) as transaction:
            transaction.put(key, change(transaction.get(key)))


def flipped(at: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


def test_fsck_without_the_key(closed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names what is torn, says that it read nothing, and mends nothing."""
    monkeypatch.delenv(KEY_VARIABLE)
    report = fsck(closed, repair=True)
    assert not report.sound and not report.findings and report.locked is not None
    assert (report.head, report.reachable, report.unreachable, report.unreferenced) == (1, [], {}, [])
    assert report.records["facts"] == 1 and "no key was given" in report.locked
    shift = next(blob for blob in blobs(closed) if len(blob) == 32)
    poke(closed, "steps", (1).to_bytes(8, "big"), flipped(50))
    poke(closed, "blobs", shift, flipped(77))
    report = fsck(closed)
    assert {finding.record for finding in report.findings} == {"steps/1", f"blobs/{shift.decode()}"}
    before = (closed / "data.mdb").read_bytes()
    with pytest.raises(StoreKeyError, match="no key was given"):
        fsck(closed, repair=True)
    assert (closed / "data.mdb").read_bytes() == before


def blobs(store: Path) -> list[bytes]:
    with lmdb.open(str(store), max_dbs=9, readonly=True, lock=False) as environment:
        database = environment.open_db(b"blobs", create=False)
        with environment.begin(db=database) as transaction:
            return [bytes(key) for key, _ in transaction.cursor()]


@pytest.mark.parametrize("at", [3, 20, 50, -5], ids=["digest", "nonce", "ciphertext", "tag"])
@pytest.mark.parametrize("table", ["steps", "facts", "places", "blobs"])
def test_a_flipped_bit_is_found_and_mended(closed: Path, table: str, at: int) -> None:
    with lmdb.open(str(closed), max_dbs=9, readonly=True, lock=False) as environment:
        database = environment.open_db(table.encode(), create=False)
        with environment.begin(db=database) as transaction, transaction.cursor() as cursor:
            assert cursor.last()
            key, value = bytes(cursor.key()), bytes(cursor.value())
    poke(closed, table, key, flipped(at % len(value)))
    assert fsck(closed).findings[0].record.startswith(f"{table}/")
    assert fsck(closed, repair=True).sound
    with EditLog.open(closed) as log:
        assert small.is_whole(log)


# -- the library


def test_a_plain_store_does_without_the_library(make_store: MakeStore, add_step: AddStep) -> None:
    log = make_store()
    add_step(log)
    log.close()
    code = """
        import sys
        sys.modules["cryptography"] = None
        from lifelong_edit.stores import EditLog, fsck
        EditLog.open(sys.argv[1]).close()
        print(fsck(sys.argv[1]).sound)
    """
    assert running.run_python(code, log.path) == "True\n"


def test_without_the_library_an_encrypted_store_says_what_to_install(closed: Path) -> None:
    code = """
        import sys
        sys.modules["cryptography"] = None
        from lifelong_edit.errors import StoreError
        from lifelong_edit.stores import EditLog
        try:
            EditLog.open(sys.argv[1])
        except StoreError as error:
            print(error)
    """
    assert "pip install 'lifelong-edit[encryption]'" in running.run_python(code, closed)
