"""Compaction: what is kept stays bit for bit, what goes is refused by name, and no kill leaves anything between."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lifelong_edit.errors import StoreDamagedError, StoreError, UsageError
from lifelong_edit.stores import MOMENTS, EditLog, fsck
from lifelong_edit.stores.lock import WriterLock
from lifelong_edit.timeline import Timeline
from lifelong_edit.timeline.history import History
from lifelong_edit.timeline.keeping import compact
from lifelong_edit.timeline.states import key_ages_at, keys_at, parts_at, weights_at
from tests.stores.conftest import BOTH

KEPT = {2: ["old"], 8: ["head", "main"], 11: ["trial"]}
GONE = [1, 3, 4, 5, 6, 7]
UNREACHED = [*GONE, 10]  # where `trial` began, at the state of 4
SHAPES = {"m": (48, 16)}


def state(store: Path, step: int) -> dict[str, Any]:
    """All that a state is made of."""
    with EditLog.open(store, read_only=True) as log:
        history = History(log.steps(), log.idle())
        keys = keys_at(log, history, step)
        return {
            "weights": weights_at(log, history, step, SHAPES)["m"].tobytes(),
            "live": history.live(step),
            "keys": {fact: (found.rows["m"].tobytes(), found.conflict.tobytes()) for fact, found in keys.items()},
            "ages": key_ages_at(log, history, step),
            "editor": {name: array.tobytes() for name, array in parts_at(log, history, step).get(MOMENTS, {}).items()},
            "facts": log.facts([digest for record in history.records for digest in record.added]),
        }


@BOTH
def test_what_is_kept_stays_as_it_was(lived: Path) -> None:
    before = {step: state(lived, step) for step in (0, *KEPT)}
    size = (lived / "data.mdb").stat().st_size
    with Timeline.open(lived, read_only=True) as timeline:
        log = timeline.log()
    planned = compact(lived, dry_run=True)
    assert (lived / "data.mdb").stat().st_size == size and planned.step is None
    done = compact(lived, reason="a clean house", author="Ada")
    assert (done.kept, done.out_of_reach, done.step) == (KEPT, GONE, 13)
    assert (planned.kept, planned.out_of_reach, planned.bytes) == (KEPT, GONE, done.bytes)
    assert size - (lived / "data.mdb").stat().st_size == done.given_back > done.bytes * 0.8
    assert {step: state(lived, step) for step in before} == before
    with Timeline.open(lived) as timeline:
        assert timeline.log()[:-1] == log
        assert (timeline.show(13).kind, timeline.show(13).author, timeline.show(13).reason) == (
            "compact", "Ada", "a clean house",
        )  # fmt: skip
        assert {branch.name: branch.tip for branch in timeline.branches()} == {"main": 8, "trial": 11}
        for step in GONE:
            tag, branch = functools.partial(timeline.tag, "late"), functools.partial(timeline.branch, "late")
            for use in (timeline.weights, timeline.rollback, tag, branch):
                with pytest.raises(UsageError, match=rf"step {step} needs was dropped by step 13 \(compact, 20"):
                    use(step)
        assert timeline.rollback("trial").parent == 11
        assert timeline.facts("live", at=3), "facts are kept, whatever became of the weights"
    report = fsck(lived)
    assert report.sound and report.dropped == list(report.unreachable) == UNREACHED and not report.unreferenced


def test_nothing_is_left_that_nobody_needs(lived: Path) -> None:
    """Of each kept state: ΔW whole or the way to it, the keys of its live facts, its editor's state."""
    compact(lived)
    with EditLog.open(lived, read_only=True) as log:
        records, kept = log.steps(), set(log.blob_sizes())
        whole = set(records[13].wholes.values())
        assert set(records[13].wholes) == {2, 8, 11}
        assert log.head().weights in whole
        keys = {str(records[step].keys) for step in (1, 2, 3, 4, 5, 6, 7, 8, 11)}
        assert keys >= kept & keys >= {str(records[step].keys) for step in (2, 8, 11)}
        expected = whole | {str(records[step].editor_state) for step in KEPT} | {str(records[0].fixed)} | (kept & keys)
        assert kept == expected


def test_a_second_one_has_nothing_to_do(lived: Path) -> None:
    compact(lived)
    inode = (lived / "data.mdb").stat().st_ino
    again = compact(lived)
    assert (again.step, again.blobs, again.given_back) == (None, 0, 0)
    assert (lived / "data.mdb").stat().st_ino == inode


@BOTH
def test_the_store_goes_on(lived: Path, first_step: Any) -> None:
    """Edits after it, a second compaction that lets go of what the first kept, and a state that comes back."""
    compact(lived)
    with Timeline.open(lived) as timeline:
        timeline.delete_tag("old")
        timeline.rollback("trial")
        weights = timeline.weights("head")["m"]
    done = compact(lived)
    assert sorted(done.kept) == [11] and done.out_of_reach == [2, 8]
    with Timeline.open(lived) as timeline:
        np.testing.assert_array_equal(timeline.weights("head")["m"], weights)
        with pytest.raises(UsageError, match="dropped by step 16"):
            timeline.weights(8)
        assert timeline.rollback(0).weights_digest == timeline.show(0).weights_digest
        np.testing.assert_array_equal(timeline.weights(11)["m"], weights)
    assert fsck(lived).sound


def test_a_state_is_stored_whole_only_bit_for_bit(lived_elsewhere: Path) -> None:
    """Its digest was logged in another environment: what is rebuilt here is near it, and stays as it was stored."""
    before = {step: state(lived_elsewhere, step)["weights"] for step in KEPT}
    done = compact(lived_elsewhere)
    assert done.wholes == [] and done.out_of_reach
    assert {step: state(lived_elsewhere, step)["weights"] for step in KEPT} == before


def test_a_damaged_store_is_left_alone(lived: Path) -> None:
    """Damaged in what a compaction itself does not look at: the tensors that `init` fixed."""
    with EditLog.open(lived, read_only=True) as log:
        fixed = log.blob(str(log.step(0).fixed))
    data = (lived / "data.mdb").read_bytes()
    (lived / "data.mdb").write_bytes(data.replace(fixed, b"?" * len(fixed)))
    with pytest.raises(StoreDamagedError, match="is damaged: blobs/"):
        compact(lived)
    with EditLog.open(lived, read_only=True) as log:
        assert log.head().step == 12


def test_other_files_move_along(lived: Path) -> None:
    (lived / "repairs").mkdir()
    (lived / "repairs" / "1.msgpack").write_bytes(b"kept")
    (lived / "README").write_text("ours")
    lived.chmod(0o750)
    compact(lived)
    assert (lived / "repairs" / "1.msgpack").read_bytes() == b"kept"
    assert (lived / "README").read_text() == "ours" and lived.stat().st_mode & 0o777 == 0o750


def test_an_open_handle_says_that_it_is_stale(lived: Path, run_python: Callable[..., str]) -> None:
    with EditLog.open(lived, read_only=True) as reader:
        assert reader.head().step == 12
        run_python("import sys\nfrom lifelong_edit.timeline.keeping import compact\ncompact(sys.argv[1])", lived)
        with pytest.raises(StoreError, match="was replaced while it was open; open it again"):
            reader.head()
    with EditLog.open(lived, read_only=True) as reader:
        assert reader.head().step == 13


def has_open(pid: int, name: str) -> bool:
    """Whether a process has a file of that name open."""
    links = Path(f"/proc/{pid}/fd")
    if not links.exists():
        pytest.skip("this system does not say which files a process has open")
    return any(link.readlink().name == name for link in links.iterdir() if link.is_symlink())


def test_a_writer_that_waited_writes_to_the_new_store(lived: Path) -> None:
    """It had the old folder's lock in hand when another folder took its place."""
    code = "import sys; from lifelong_edit.timeline import Timeline; print('waiting', flush=True)\n"
    code += "with Timeline.open(sys.argv[1], timeout=60) as timeline: timeline.tag('late')"
    with EditLog.open(lived):
        writer = subprocess.Popen([sys.executable, "-c", code, str(lived)], stdout=subprocess.PIPE)
        assert writer.stdout is not None and writer.stdout.readline()
        while not has_open(writer.pid, "writer.lock"):
            time.sleep(0.01)
        new = lived.with_name("new")
        shutil.copytree(lived, new)
        lived.rename(lived.with_name("gone"))
        new.rename(lived)
        held = WriterLock(lived / "writer.lock")
    with pytest.raises(subprocess.TimeoutExpired):  # the old lock is free now, and worth nothing
        writer.wait(0.7)
    held.release()
    assert writer.wait(60) == 0
    writer.stdout.close()
    with Timeline.open(lived, read_only=True) as timeline:
        assert timeline.show("late").step == 8


@BOTH
def test_no_kill_leaves_anything_between(
    lived: Path, tmp_path: Path, killed_everywhere: Callable[..., Iterator[int]]
) -> None:
    before = {step: state(lived, step) for step in KEPT}
    original = Path(shutil.copytree(lived, tmp_path / "original"))
    code = """
        from lifelong_edit.timeline.keeping import compact
        compact(*arguments)
    """
    heads = []
    for _ in killed_everywhere(code, lived):
        with EditLog.open(lived) as log:
            heads.append(log.head().step)
        assert fsck(lived).sound
        assert {step: state(lived, step) for step in KEPT} == before
        compact(lived)
        assert fsck(lived).dropped == UNREACHED and compact(lived).step is None
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["original", "store"], "leftovers"
        shutil.rmtree(lived)
        shutil.copytree(original, lived)
    assert heads == sorted(heads) and set(heads) == {12, 13}, "some before the step was committed, some after"
    assert len(heads) > 20
