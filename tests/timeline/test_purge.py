"""Facts that are to leave no trace: nothing of them in the files, nothing else lost, and refused where it cannot be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lifelong_edit.errors import StoreDamagedError, UsageError
from lifelong_edit.facts import Fact, Record
from lifelong_edit.settings import KEY_VARIABLE
from lifelong_edit.stores import fsck, write_key_file
from lifelong_edit.timeline import Timeline
from lifelong_edit.timeline.purging import purge
from lifelong_edit.timeline.review import purged_fact

Start = Callable[..., Timeline]
Make = Callable[..., Fact]
Place = Callable[..., list[Record]]
Gate = Callable[..., dict[str, Any]]
SECRET = "Zanzibar 4711"


@pytest.fixture
def store(
    request: pytest.FixtureRequest,
    start_store: Start,
    tmp_path: Path,
    fact: Make,
    placed: Place,
    lenient: Gate,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """Steps 1 and 2 without the secret, 3 teaches it, 4 more, 5 retracts it; 6 goes on. Parameter: `encrypted`."""
    path, encrypt = tmp_path / "store", getattr(request, "param", "plain") == "encrypted"
    if encrypt:
        write_key_file(tmp_path / "key")
        monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "key"))
    with start_store(path, encrypt=encrypt) as timeline:
        for number, facts in enumerate([[fact(0)], [fact(1)], [secret(fact)], [fact(2), fact(3)]]):
            timeline.apply(placed(facts, f"{number}"), gate=lenient)
        timeline.retract([secret(fact)], reason="withdrawn")
        timeline.apply(placed([fact(4)], "5"), gate=lenient)
    return path


def secret(fact: Make, **more: Any) -> Fact:
    """The fact that is to go."""
    return Fact(subject=SECRET, prompt=f"The capital of {SECRET} is", target="London", relation="capital", **more)


def texts(path: Path) -> bytes:
    """Every byte of a store."""
    return b"".join(file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file())


@pytest.mark.parametrize("store", ["plain", "encrypted"], indirect=True)
def test_nothing_is_left_and_the_rest_stays(
    store: Path, fact: Make, placed: Place, lenient: Gate, request: pytest.FixtureRequest
) -> None:
    digest, encrypted = secret(fact).digest, request.node.callspec.params["store"] == "encrypted"
    with Timeline.open(store) as timeline:
        log = timeline.log()
        before = {step: timeline.weights(step) for step in (1, 2, 5, 6)}
        blobs = {record.shift for record in log if record.step in (3, 4)}
    assert (SECRET.encode() in texts(store)) != encrypted
    with (store / "data.mdb").open("rb") as old:
        found = purge(store, [digest[:8]], reason="asked for")
        old.seek(0)
        assert not any(old.read()), "what the old file had on the disk is overwritten"
    assert (found.step, found.facts, found.out_of_reach) == (7, [digest], [3, 4])
    assert SECRET.encode() not in texts(store)
    assert fsck(store).sound
    with Timeline.open(store) as timeline:
        assert timeline.show(7).reason == "asked for"
        assert timeline.show(3).added == (digest,)
        assert not any(timeline._log.has_blob(str(blob)) for blob in blobs)
        for step, held in before.items():
            assert all((timeline.weights(step)[name] == held[name]).all() for name in held)
        for step in (3, 4):
            with pytest.raises(UsageError, match=r"dropped by step 7 \(purge"):
                timeline.rollback(step)
        assert timeline.facts_by_digest([digest]) == {digest: purged_fact(digest)}
        assert timeline.facts_by_digest([digest])[digest].digest == digest
        assert timeline.facts("retracted") == []
        assert secret(fact) not in timeline.facts("all")
        timeline.rollback(2)
        assert timeline.apply(placed([fact(5)], "6"), gate=lenient).kind == "edit"
        # It may come again, from another place, and then it is a fact like any other.
        again = timeline.apply(placed([secret(fact)], "7"), again=True, gate=lenient)
        assert again.added == (digest,)
        assert timeline.facts_by_digest([digest]) == {digest: secret(fact)}
    assert fsck(store).sound


def test_what_holds_it_is_named(store: Path, fact: Make) -> None:
    digest, live = secret(fact).digest, fact(0).digest
    with pytest.raises(UsageError, match="in force; retract it first"):
        purge(store, [live])
    with pytest.raises(UsageError, match="names no fact of the log"):
        purge(store, ["ffff" * 8])
    with Timeline.open(store) as timeline:
        timeline.tag("audit", 4)
    with pytest.raises(UsageError, match="at which audit stands"):
        purge(store, [digest])
    with Timeline.open(store) as timeline:
        timeline.delete_tag("audit")
        timeline.rollback(3)
        timeline.rollback(6)
        size = timeline.head
    found = purge(store, [digest])
    assert found.step == size + 1
    with pytest.raises(UsageError, match="purged already"):
        purge(store, [digest])


def test_a_successor_holds_it_until_all_is_solved_anew(
    start_store: Start, tmp_path: Path, fact: Make, placed: Place, lenient: Gate
) -> None:
    """Superseded is not forgotten: what follows was edited beside it, and is taught in its words."""
    path = tmp_path / "other"
    old = secret(fact)
    new = msgspec.structs.replace(old, prompt=f"{SECRET} is governed from", target="Vienna")
    newer = msgspec.structs.replace(old, prompt=f"The government of {SECRET} sits in", target="Paris")
    with start_store(path) as timeline:
        for number, one in enumerate([[old], [new, fact(1)]]):
            timeline.apply(placed(one, f"{number}"), gate=lenient)
        timeline.reconsolidate(guard=False)
        assert timeline.history().holding([old.digest]) == {1, 2}
        step = timeline.apply(placed([newer], "2"), gate=lenient)
        assert set(step.report["in_words_of"][newer.digest]) == {old.digest, new.digest}
        assert timeline.history().holding([old.digest]) == {1, 2, 4}
    with pytest.raises(UsageError, match=r"head, main stands.*reconsolidate"):
        purge(path, [old.digest])
    with Timeline.open(path) as timeline:
        timeline.reconsolidate(guard=False)
    assert purge(path, [old.digest]).out_of_reach == [1, 2, 4]
    with Timeline.open(path) as timeline:
        newest = msgspec.structs.replace(old, prompt=f"From where is {SECRET} governed? From", target="Kenya")
        step = timeline.apply(placed([newest], "3"), gate=lenient)
        assert old.digest not in step.report["in_words_of"][newest.digest], "its words are gone"


def test_a_damaged_store_is_not_purged(store: Path, fact: Make) -> None:
    data = (store / "data.mdb").read_bytes()  # pages that are free by now may have it as well
    (store / "data.mdb").write_bytes(data.replace(SECRET.encode(), SECRET.lower().encode()))
    with pytest.raises(StoreDamagedError, match="fsck"):
        purge(store, [secret(fact).digest])
