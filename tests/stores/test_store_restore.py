"""An older state put back on purpose: told from an accident, and whole wherever it is cut off."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lifelong_edit.errors import StoreDamagedError, StoreLockedError, UsageError
from lifelong_edit.stores import EditLog, backup, fsck
from lifelong_edit.timeline import Timeline
from lifelong_edit.timeline.keeping import restore
from tests.stores.conftest import BOTH


@pytest.fixture
def older(lived: Path, tmp_path: Path) -> Path:
    """A backup of the store, which has gone on by two steps since."""
    backup(lived, tmp_path / "older")
    with Timeline.open(lived) as timeline:
        timeline.tag("late", 8)
        timeline.tag("later", 8)
    return tmp_path / "older"


@BOTH
def test_an_older_state_is_put_back(lived: Path, older: Path) -> None:
    before = (lived / "data.mdb").read_bytes()
    done = restore(older, lived, reason="a bad week", author="Ada")
    assert (done.step, done.backup_head, done.replaced_head) == (13, 12, 14)
    assert done.kept_at == str(lived) + ".replaced-1"
    assert (Path(done.kept_at) / "data.mdb").read_bytes() == before and fsck(done.kept_at).head == 14
    with Timeline.open(lived, read_only=True) as timeline, Timeline.open(older, read_only=True) as backed:
        assert timeline.log()[:-1] == backed.log()
        record = timeline.show("head")
        assert (record.kind, record.reason, record.author) == ("restore", "a bad week", "Ada")
        assert record.weights_digest == backed.show("head").weights_digest
        assert {b.name: b.tip for b in timeline.branches()} == {b.name: b.tip for b in backed.branches()}
        assert [tag.name for tag in timeline.tags()] == ["old"]
        timeline.weights("head")
    assert fsck(lived).sound and fsck(older).sound
    with Timeline.open(lived) as timeline:
        timeline.tag("on")
    restore(Path(done.kept_at), lived)  # what was replaced can be put back as well
    with Timeline.open(lived, read_only=True) as timeline:
        assert [tag.name for tag in timeline.tags()] == ["old", "late", "later"]
        assert timeline.show("head").kind == "restore"


@pytest.mark.parametrize("copied", ["older", "newer"])
def test_an_accident_is_told_from_it(lived: Path, older: Path, copied: str, tmp_path: Path) -> None:
    """After a restoration neither the database from before it nor that of the backup passes for the store's."""
    newer = (lived / "data.mdb").read_bytes()
    restore(older, lived)
    swapped = newer if copied == "newer" else (older / "data.mdb").read_bytes()
    (lived / "data.mdb").write_bytes(swapped)
    with pytest.raises(StoreDamagedError, match="another history" if copied == "newer" else "an older copy"):
        EditLog.open(lived)
    assert not fsck(lived, repair=True).sound


@BOTH
def test_a_store_is_made_where_there_is_none(older: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "deep" / "new"):
        done = restore(older, path)
        assert (done.step, done.replaced_head, done.kept_at) == (13, None, None)
        assert fsck(path).sound and fsck(path).head == 13


def test_what_was_damaged_is_kept_too(lived: Path, older: Path) -> None:
    (lived / "data.mdb").write_bytes(b"?" * 5000)
    (lived / "HEAD").unlink()
    done = restore(older, lived)
    assert (done.replaced_head, fsck(lived).sound) == (None, True)
    assert (Path(str(done.kept_at)) / "data.mdb").read_bytes() == b"?" * 5000
    again = restore(older, lived, discard=True)
    assert again.kept_at is None and not Path(f"{lived}.replaced-2").exists()


def test_what_cannot_be_put_back_is_refused(lived: Path, older: Path, make_store: Callable[..., EditLog]) -> None:
    before = (lived / "data.mdb").read_bytes()
    other = make_store("other")
    other.close()
    with pytest.raises(UsageError, match=r"is of the store \w+; expected \w+, that of the backup"):
        restore(other.path, lived)
    with pytest.raises(UsageError, match="lie in one another"):
        restore(older, older)
    folder = lived.with_name("letters")
    folder.mkdir()
    (folder / "letter").write_text("mine")
    with pytest.raises(UsageError, match="says which store it was"):
        restore(older, folder)
    with EditLog.open(lived), pytest.raises(StoreLockedError):
        restore(older, lived, timeout=0.1)
    (older / "HEAD").unlink()
    with pytest.raises(StoreDamagedError, match="restore another backup"):
        restore(older, lived)
    assert (lived / "data.mdb").read_bytes() == before and (folder / "letter").read_text() == "mine"
    assert not Path(f"{lived}.replaced-1").exists()


@BOTH
def test_no_kill_leaves_no_store(
    lived: Path, older: Path, tmp_path: Path, killed_everywhere: Callable[..., Iterator[int]]
) -> None:
    """At each point the store is the one from before or the restored one; what was replaced is never lost."""
    original = Path(shutil.copytree(lived, tmp_path / "original"))
    code = """
        from lifelong_edit.timeline.keeping import restore
        restore(*arguments)
    """
    kinds = []
    kept = Path(f"{lived}.replaced-1")
    for _ in killed_everywhere(code, older, lived):
        with Timeline.open(lived, read_only=True) as timeline:
            kinds.append(timeline.show("head").kind)
        assert fsck(lived).sound
        if kinds[-1] == "restore":
            assert fsck(kept).head == 14
        done = restore(older, lived)
        assert fsck(lived).head == 13
        wanted = {"store", "older", "original", "store.replaced-1"}
        wanted |= {"store.replaced-2"} if kinds[-1] == "restore" else set()
        assert {entry.name for entry in tmp_path.iterdir()} == wanted and Path(str(done.kept_at)).name in wanted
        assert not list(tmp_path.glob("*/UNFINISHED"))
        for entry in (lived, *tmp_path.glob("*.replaced-*")):
            shutil.rmtree(entry)
        shutil.copytree(original, lived)
    assert kinds == sorted(kinds, reverse=True) and set(kinds) == {"tag", "restore"}
    assert len(kinds) > 20
