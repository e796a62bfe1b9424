"""What records leave over in their pages: LMDB copies it as it is, so a purge has to blank it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lifelong_edit.stores import EditLog, StepRecord, fsck
from lifelong_edit.stores.copying import shrink
from lifelong_edit.stores.pages import PageFile
from tests.faults import small

SECRET = b"Zanzibar 4711"


@pytest.fixture
def store(make_store: Callable[..., EditLog], add_step: Callable[..., StepRecord]) -> Path:
    """A store of twelve steps, with large values and small ones, whose every gap has a secret in it."""
    log = make_store()
    for number in range(12):
        add_step(log, size=1 + 400 * (number % 3))
    log.close()
    data = log.path / "data.mdb"
    with PageFile(data) as pages:
        gaps = pages.gaps()
    assert {gap.size >= 4096 for gap in gaps} == {True, False}, "free pages, and the rest of others"
    with data.open("r+b") as file:
        for gap in gaps:
            file.seek(gap.offset)
            file.write(SECRET[: gap.size])
    assert fsck(log.path).sound, "they belong to nothing"
    return log.path


@pytest.mark.parametrize("overwrite", [False, True])
def test_they_are_blank_where_what_went_is_to_leave_no_trace(store: Path, overwrite: bool) -> None:
    with EditLog.open(store) as log:
        before = small.content(log)
        shrink(log, overwrite=overwrite)
    assert (SECRET in (store / "data.mdb").read_bytes()) is not overwrite
    assert fsck(store).sound
    with EditLog.open(store) as log:
        assert small.content(log) == before and small.is_whole(log)
        small.add(log)
