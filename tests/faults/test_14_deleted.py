"""14. A store deleted or replaced while it is open: the next commit fails instead of going nowhere."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest

from lifelong_edit.errors import StoreError
from lifelong_edit.stores import EditLog, StepRecord

AddStep = Callable[..., StepRecord]
MakeStore = Callable[..., EditLog]


def test_deleted(make_store: MakeStore, add_step: AddStep) -> None:
    log = make_store()
    shutil.rmtree(log.path)
    for use in (lambda: add_step(log), lambda: log.consume(0, []), log.head):
        with pytest.raises(StoreError, match="was deleted while it was open"):
            use()


def test_replaced(make_store: MakeStore, add_step: AddStep) -> None:
    log, other = make_store(), make_store("other")
    other.close()
    shutil.rmtree(log.path)
    shutil.copytree(other.path, log.path)
    with pytest.raises(StoreError, match="was replaced while it was open"):
        add_step(log)
    with EditLog.open(log.path) as again:
        assert again.head().step == 0
