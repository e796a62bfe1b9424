"""10. An older copy swapped in: noticed by the chain of digests and the head kept beside the database."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lifelong_edit.errors import StoreDamagedError
from lifelong_edit.stores import EditLog, StepRecord

AddStep = Callable[..., StepRecord]
MakeStore = Callable[..., EditLog]


@pytest.mark.parametrize("read_only", [False, True])
def test_of_the_database(make_store: MakeStore, add_step: AddStep, tmp_path: Path, read_only: bool) -> None:
    log = make_store()
    add_step(log)
    log.close()
    shutil.copy(log.path / "data.mdb", tmp_path / "old.mdb")
    with EditLog.open(log.path) as again:
        add_step(again)
    shutil.copy(tmp_path / "old.mdb", log.path / "data.mdb")
    with pytest.raises(StoreDamagedError, match="ends at step 1, but step 2 was acknowledged"):
        EditLog.open(log.path, read_only=read_only)


def test_another_history_of_the_same_store(make_store: MakeStore, add_step: AddStep, tmp_path: Path) -> None:
    """Longer even than the one that was acknowledged."""
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


def test_files_of_two_stores(make_store: MakeStore) -> None:
    one, two = make_store("one"), make_store("two")
    one.close(), two.close()
    for name in ("data.mdb", "HEAD", "store.json"):
        kept = (one.path / name).read_bytes()
        shutil.copy(two.path / name, one.path / name)
        with pytest.raises(StoreDamagedError, match="mixes files of several stores"):
            EditLog.open(one.path)
        (one.path / name).write_bytes(kept)
    EditLog.open(one.path).close()
