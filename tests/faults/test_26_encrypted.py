"""26. An encrypted store in a stranger's hands: nothing can be read without its key, or be changed unnoticed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import msgspec
import numpy as np
import pytest

from lifelong_edit.errors import StoreDamagedError, StoreKeyError
from lifelong_edit.settings import KEY_VARIABLE
from lifelong_edit.stores import EditLog, KeyIndex, Place, fsck, seal, write_key_file
from tests.faults import small
from tests.faults.kills import Count

RunPython = Callable[..., str]


@pytest.fixture
def key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A key, at hand."""
    write_key_file(tmp_path / "key")
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "key"))
    return tmp_path / "key"


@pytest.fixture
def closed(key_file: Path, tmp_path: Path) -> Path:
    """An encrypted store of two steps."""
    return fill(tmp_path / "store", encrypt=True)


def fill(path: Path, *, encrypt: bool) -> Path:
    """A store with something in each table, and a kept index."""
    with small.create(path, encrypt=encrypt) as log:
        small.add(log)
        small.add(log, snapshot=True)
        log.keep_measurement(small.measurement(1))
        log.consume(2, [Place("e" * 32, 0, "idle fact")])
        index = KeyIndex(3, lambda facts: np.ones((len(facts), 3), np.float32))
        index.add(log.step(1).added, np.ones((1, 3), np.float32))
        index.save(path / "index", log.head().chain, log.envelopes)
    return path


def everything(folder: Path) -> bytes:
    """Every byte of a folder."""
    return b"".join(file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file())


def test_nothing_of_facts_and_keys_is_in_its_files(closed: Path, tmp_path: Path) -> None:
    secrets = {
        "a fact": msgspec.json.encode(small.fact(2)),
        "tensors": np.full(4, 2, np.float32).tobytes(),
        "a step": b"weights_digest",
        "a place without a step": b"idle fact",
        "an answer": b"answer 1",
        "keys in the index": np.full(3, 3**-0.5, np.float32).tobytes(),
    }
    plain = everything(fill(tmp_path / "plain", encrypt=False))
    assert {name for name, secret in secrets.items() if secret in plain} == set(secrets)
    assert {name for name, secret in secrets.items() if secret in everything(closed)} == set()


def test_a_kept_index_is_read_with_the_key_alone(closed: Path) -> None:
    built = []

    def source(facts: object) -> np.ndarray:
        built.append(facts)
        return np.ones((1, 3), np.float32)

    with EditLog.open(closed, read_only=True) as log:
        chain, facts = log.head().chain, log.step(1).added
        assert len(KeyIndex.open(closed / "index", 3, chain, source, facts, log.envelopes)) == 1 and not built
        assert len(KeyIndex.open(closed / "index", 3, chain, source, facts)) == 1 and built


def change(store: Path, table: str, key: bytes, value: Callable[[bytes], bytes]) -> None:
    """Put another value into a database, as somebody does who knows its format."""
    with lmdb.open(str(store), max_dbs=9, create=False) as environment:
        database = environment.open_db(table.encode(), create=False)
        with environment.begin(write=True, db=database) as transaction:
            transaction.put(key, value(bytes(transaction.get(key))))


@pytest.mark.parametrize("at", [-20, -5], ids=["ciphertext", "tag"])
def test_a_changed_value_with_a_digest_that_fits_is_noticed(closed: Path, at: int) -> None:
    """Whoever can write a value can write its digest; the tag of the cipher he cannot."""
    with EditLog.open(closed, read_only=True) as log:
        (fact,), shift = log.step(1).added, str(log.step(1).shift)
    for table, key in (("facts", fact), ("blobs", shift)):
        name = f"{table}/{key}"
        changed = lambda data: seal(name, data[16:at] + bytes([data[at] ^ 1]) + data[at + 1 :])  # noqa: B023, E731
        change(closed, table, key.encode(), changed)
    with EditLog.open(closed, read_only=True) as log:
        with pytest.raises(StoreDamagedError, match=f"facts/{fact} is not what was encrypted under that name"):
            log.facts([fact])
        with pytest.raises(StoreDamagedError, match=f"blobs/{shift} is not what was encrypted under that name"):
            log.blob(shift)
    named = {finding.record for finding in fsck(closed).findings}
    assert {f"facts/{fact}", f"blobs/{shift}"} <= named


def test_a_value_in_the_place_of_another_is_noticed(closed: Path) -> None:
    with EditLog.open(closed, read_only=True) as log:
        (one,), (other,) = log.step(1).added, log.step(2).added
    taken: list[bytes] = []
    change(closed, "facts", one.encode(), lambda data: (taken.append(data), data)[1])
    change(closed, "facts", other.encode(), lambda _: seal(f"facts/{other}", taken[0][16:]))
    with (
        EditLog.open(closed, read_only=True) as log,
        pytest.raises(StoreDamagedError, match=f"facts/{other} is not what was encrypted under that name"),
    ):
        log.facts([other])


@pytest.mark.parametrize("where", ["beside", "inside"])
def test_a_store_cannot_be_said_to_be_plain(closed: Path, where: str) -> None:
    """Its records would be refused one by one; whoever only writes to it would write in the clear."""
    plain = msgspec.json.decode((closed / "store.json").read_bytes())
    del plain["encryption"]
    if where == "beside":
        (closed / "store.json").write_bytes(msgspec.json.encode(plain))
    else:
        change(closed, "meta", b"marker", lambda _: seal("meta/marker", msgspec.json.encode(plain)))
    with pytest.raises(StoreDamagedError, match=r"is encrypted by one of store\.json and data\.mdb alone"):
        EditLog.open(closed)


def test_killed_at_random(tmp_path: Path, key_file: Path, run_python: RunPython) -> None:
    code = """
        import sys
        from pathlib import Path
        from tests.faults import kills
        print(kills.random_kills(Path(sys.argv[1]), 25, longest=0.06, encrypt=True))
    """
    found = Count(*map(int, run_python(code, tmp_path).split()[1::2]))
    assert found.cycles == 25 and found.acknowledged > 5
    assert (found.lost, found.torn) == (0, 0)


# -- its key


def opens(store: Path, key: Path, monkeypatch: pytest.MonkeyPatch, *, read_only: bool = True) -> bool:
    """Whether a key opens a store, whole."""
    monkeypatch.setenv(KEY_VARIABLE, str(key))
    try:
        with EditLog.open(store, read_only=read_only) as log:
            assert small.is_whole(log)
    except StoreKeyError:
        return False
    return True


def test_rekey_killed_anywhere(
    closed: Path,
    key_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    killed_everywhere: Callable[..., Iterator[int]],
) -> None:
    """At every moment the old key opens it, or the new one, or both; then the next writer settles it for one."""
    new, original = tmp_path / "new", Path(shutil.copytree(closed, tmp_path / "original"))
    write_key_file(new)
    code = """
        from lifelong_edit.stores import EditLog
        with EditLog.open(arguments[0]) as log:
            log.rekey(arguments[1])
    """
    seen = set()
    for point in killed_everywhere(code, closed, new):
        found = opens(closed, key_file, monkeypatch), opens(closed, new, monkeypatch)
        seen.add(found)
        if all(found):
            monkeypatch.setenv(KEY_VARIABLE, str(new))
            assert [finding.record for finding in fsck(closed).findings] == ["store.json"]
            keys = [key_file, new] if point % 2 else [new, key_file]
            assert opens(closed, keys[0], monkeypatch, read_only=False)
            assert fsck(closed).sound and not opens(closed, keys[1], monkeypatch)
        shutil.rmtree(closed)
        shutil.copytree(original, closed)
        monkeypatch.setenv(KEY_VARIABLE, str(key_file))
    assert seen == {(True, False), (True, True), (False, True)}
