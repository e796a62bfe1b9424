"""Backups: one state, whole, whoever writes meanwhile and wherever the making of one is cut off."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lifelong_edit.errors import StoreDamagedError, StoreError, UsageError
from lifelong_edit.stores import EditLog, StepRecord, backup, checking, fsck
from lifelong_edit.stores.findings import Examination

AddStep = Callable[..., StepRecord]
MakeStore = Callable[..., EditLog]
WRITER = """
import sys
from lifelong_edit.stores import Edit, EditLog, digest_bytes
from tests.faults import small

log = EditLog.open(sys.argv[1], timeout=30)
while True:
    head = log.head()
    number = head.step + 1
    shift, weights = (bytes([number % 251]) * 40_000 + tag + b"%d" % number for tag in (b"shift", b"weights"))
    record = Edit(
        step=number, parent=head.step, previous=head.chain, time="t", weights_digest=digest_bytes(weights),
        parts=small.parts(digest_bytes(weights), shift=digest_bytes(shift)), live_digest="",
    )
    blobs = {digest_bytes(b): b for b in (shift, weights)}
    log.append(record, facts={}, blobs=blobs, weights=digest_bytes(weights))
    print(number, flush=True)
"""


@pytest.fixture
def store(make_store: MakeStore, add_step: AddStep) -> Path:
    log = make_store()
    for _ in range(4):
        add_step(log)
    log.close()
    return log.path


def test_a_backup_is_the_store_without_its_caches(store: Path, tmp_path: Path) -> None:
    (store / "index").mkdir()
    made = backup(store, tmp_path / "deep" / "copy")
    with EditLog.open(store, read_only=True) as log, EditLog.open(made.path, read_only=True) as copy:
        assert copy.steps() == log.steps()
        assert (copy.head(), copy.marker) == (log.head(), log.marker)
        assert (made.head, made.chain) == (4, log.head().chain)
    assert {file.name for file in Path(made.path).iterdir()} == {"data.mdb", "HEAD", "store.json"}
    assert made.bytes <= (store / "data.mdb").stat().st_size
    assert (store / "HEAD").read_bytes() == (Path(made.path) / "HEAD").read_bytes()


def test_what_is_there_stays(store: Path, tmp_path: Path) -> None:
    full, file, link = tmp_path / "full", tmp_path / "file", tmp_path / "link"
    full.mkdir()
    (full / "letter").write_text("mine")
    file.write_text("mine")
    link.symlink_to(tmp_path / "nowhere")
    for target in (full, file, link):
        with pytest.raises(UsageError, match="is already there"):
            backup(store, target)
    assert (full / "letter").read_text() == file.read_text() == "mine"
    with pytest.raises(UsageError, match="lies in the store"):
        backup(store, store / "backup")
    (tmp_path / "empty").mkdir()
    assert backup(store, tmp_path / "empty").head == 4
    with pytest.raises(UsageError, match="is already there"):
        backup(store, tmp_path / "empty")
    with pytest.raises(StoreError, match="there is no store"):
        backup(tmp_path / "nothing", tmp_path / "copy")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["empty", "file", "full", "link", "store"]


def test_a_writer_goes_on_meanwhile(store: Path, tmp_path: Path) -> None:
    """Each backup is a beginning of the log that the writer leaves, and has all that was told before it began."""
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(store)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    told, heads = 4, []
    try:
        for number in range(12):
            for _ in range(3):
                told = int(writer.stdout.readline())
            made = backup(store, tmp_path / f"copy {number}")
            assert made.head >= told
            report = fsck(store)  # of one state as well, whatever is written while it is read
            assert report.sound and report.head >= told, report.findings
            heads.append(made.head)
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()
    assert heads == sorted(set(heads))
    with EditLog.open(store) as log:
        steps = log.steps()
    for number, head in enumerate(heads):
        report = fsck(tmp_path / f"copy {number}")
        assert report.sound and report.head == head and not report.unreferenced
        with EditLog.open(tmp_path / f"copy {number}", read_only=True) as copy:
            assert copy.steps() == steps[: head + 1]
            copy.blob(str(copy.head().weights))


def test_a_state_is_held_still_while_it_is_examined(store: Path, add_step: AddStep) -> None:
    """Steps that are committed after the examination began leave every page that it has yet to read."""
    with EditLog.open(store) as log, contextlib.ExitStack() as stack:
        pages = checking._open(Examination(store), stack)
        assert pages is not None
        for _ in range(12):
            add_step(log)
        records = {name: sum(1 for _ in pages.entries(tree)) for name, tree in pages.tables().items()}
        pages.account()
    assert not pages.problems and records["steps"] == 5


def test_of_a_damaged_store_there_is_no_backup(store: Path, tmp_path: Path) -> None:
    data = (store / "data.mdb").read_bytes()
    at = data.index(b"dense/m") + 200  # within a tensor
    (store / "data.mdb").write_bytes(data[:at] + b"?" + data[at + 1 :])
    with pytest.raises(StoreDamagedError, match=r"is damaged: blobs/.*no backup was made"):
        backup(store, tmp_path / "copy")
    (store / "data.mdb").write_bytes(data[: 20 * 4096])
    with pytest.raises(StoreDamagedError):
        backup(store, tmp_path / "copy")
    assert [entry.name for entry in tmp_path.iterdir()] == ["store"]


def test_pages_that_lmdb_would_die_of(store: Path, tmp_path: Path, run_python: Callable[..., str]) -> None:
    """Bits flipped in the number and places of a page's entries; each backup of it in a process of its own."""
    code = """
        import os, sys
        from pathlib import Path
        from lifelong_edit.errors import StoreError
        from lifelong_edit.stores import backup
        file = Path(sys.argv[1]) / "data.mdb"
        data = file.read_bytes()
        pages = [at for at in range(8192, len(data), 4096) if data[at + 10] in (1, 2)]
        for at, byte, bit in [(at, *flip) for at in pages for flip in ((12, 2), (12, 4), (17, 5), (17, 7))]:
            changed = bytearray(data)
            changed[at + byte] ^= 1 << bit
            file.write_bytes(changed)
            if not (child := os.fork()):
                try:
                    backup(sys.argv[1], f"{sys.argv[2]} {at} {byte} {bit}")
                except StoreError:
                    os._exit(4)
                os._exit(0)
            print(os.waitpid(child, 0)[1])
    """
    ended = [os.waitstatus_to_exitcode(int(status)) for status in run_python(code, store, tmp_path / "copy").split()]
    assert set(ended) == {0, 4} and ended.count(4) > 10, "0 where the page belongs to no state any more"


def test_a_full_disk_leaves_nothing(store: Path, tmp_path: Path, run_python: Callable[..., str]) -> None:
    code = """
        import resource, signal, sys
        from lifelong_edit.errors import StoreError
        from lifelong_edit.stores import backup
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        try:
            backup(*sys.argv[1:])
        except StoreError as error:
            print("cannot copy" in str(error))
    """
    assert run_python(code, store, tmp_path / "copy").split() == ["True"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["store"]


def test_a_store_that_may_only_be_read_can_be_copied(store: Path, tmp_path: Path) -> None:
    read_only = Path(shutil.copytree(store, tmp_path / "read-only"))
    for file in read_only.iterdir():
        file.chmod(0o444)
    read_only.chmod(0o555)
    owner = os.geteuid()
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == owner and parent.is_relative_to(tempfile.gettempdir()):
            parent.chmod(parent.stat().st_mode | 0o055)
    if owner == 0:
        os.seteuid(65534)  # permissions do not bind root
    try:
        assert backup(read_only, tmp_path / "copy").head == 4
        assert fsck(read_only).sound
    finally:
        os.seteuid(owner)
        read_only.chmod(0o755)


def test_no_kill_leaves_half_a_backup(
    store: Path, tmp_path: Path, killed_everywhere: Callable[..., Iterator[int]]
) -> None:
    target, done, kills = tmp_path / "out" / "copy", 0, 0
    code = """
        import sys
        from lifelong_edit.stores import backup
        backup(*arguments)
    """
    for point in killed_everywhere(code, store, target):
        kills = point
        if target.exists():
            assert fsck(target).sound and fsck(target).head == 4
            assert EditLog.open(target, read_only=True).head().step == 4
            shutil.rmtree(target)
            done += 1
        assert fsck(store).sound
    assert kills > 12 and 0 < done < kills / 2, "some before the backup had its name, some after"
    assert [entry.name for entry in target.parent.iterdir()] == ["copy"], "what kills left was not removed"
