"""8. An empty or missing data file: refused, naming the store. LMDB would make a new one of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from lifelong_edit.errors import StoreDamagedError, StoreError
from lifelong_edit.stores import EditLog

MakeStore = Callable[..., EditLog]


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("size", [None, 0])
def test_is_damage_and_stays_as_it_is(make_store: MakeStore, size: int | None, read_only: bool) -> None:
    log = make_store()
    log.close()
    data = log.path / "data.mdb"
    data.unlink()
    if size is not None:
        data.touch()
    with pytest.raises(StoreDamagedError, match=str(log.path)):
        EditLog.open(log.path, read_only=read_only)
    assert data.exists() == (size is not None) and (size is None or not data.stat().st_size)


@pytest.mark.parametrize("content", [bytes(65536), b"\xff" * 65536, b"SQLite format 3\0" * 4096])
def test_what_is_no_database(make_store: MakeStore, content: bytes) -> None:
    log = make_store()
    log.close()
    (log.path / "data.mdb").write_bytes(content)
    with pytest.raises(StoreDamagedError, match="no readable database"):
        EditLog.open(log.path)


@pytest.mark.parametrize(
    ("name", "match"), [("HEAD", "HEAD is missing"), ("store.json", r"store\.json is missing beside")]
)
def test_the_files_beside_it(make_store: MakeStore, name: str, match: str) -> None:
    log = make_store()
    log.close()
    (log.path / name).unlink()
    with pytest.raises(StoreDamagedError, match=match):
        EditLog.open(log.path)
    (log.path / name).write_bytes(b"")
    with pytest.raises(StoreDamagedError, match=f"{name} cannot be read"):
        EditLog.open(log.path)


def test_only_making_makes(tmp_path: Path, run: Callable[..., Result]) -> None:
    with pytest.raises(StoreError, match="no store at"):
        EditLog.open(tmp_path / "nothing")
    for command in (["log"], ["status"], ["rollback", "0"], ["ask", "Who?"]):
        result = run(*command, "--store", tmp_path / "nothing")
        assert result.exit_code == 4 and str(tmp_path / "nothing") in result.stderr
    assert not (tmp_path / "nothing").exists()
