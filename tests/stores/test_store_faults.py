"""Kills, forks, full disks, truncated files: each in a process of its own."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lifelong_edit.errors import StoreDamagedError, StoreError, StoreLockedError
from lifelong_edit.stores import EditLog, StepRecord, digest_bytes

AddStep = Callable[..., StepRecord]
MakeStore = Callable[..., EditLog]
RunPython = Callable[..., str]

WRITER = """
import sys
from lifelong_edit.stores import EditLog, StepRecord, digest_bytes

log = EditLog.open(sys.argv[1], timeout=30)
print("ready", flush=True)
acknowledged = open(sys.argv[2], "a")
while True:
    head = log.head()
    number = head.step + 1
    shift, weights = (bytes([number % 251]) * 40_000 + tag for tag in (b"shift", b"weights"))
    record = StepRecord(
        step=number, kind="edit", parent=head.step, previous=head.chain, time="t", shift=digest_bytes(shift),
        weights_digest=digest_bytes(weights), live_digest="",
    )
    blobs = {digest_bytes(b): b for b in (shift, weights)}
    done = log.append(record, facts={digest_bytes(shift): b"fact"}, blobs=blobs, weights=digest_bytes(weights))
    acknowledged.write(f"{done.step} {done.chain}\\n")
    acknowledged.flush()
    print(done.step, flush=True)
"""


def test_no_kill_loses_or_tears_a_step(make_store: MakeStore, tmp_path: Path) -> None:
    log = make_store()
    log.close()
    moment, acknowledged = random.Random(0), tmp_path / "acknowledged"
    acknowledged.touch()
    for _ in range(12):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(log.path), str(acknowledged)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        for _ in range(moment.randint(1, 5)):  # "ready", then the steps
            assert writer.stdout.readline()
        time.sleep(moment.uniform(0, 0.02))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        known = [line.split() for line in acknowledged.read_text().splitlines()]
        with EditLog.open(log.path) as after:
            records = after.steps()
            last = int(known[-1][0]) if known else 0
            assert len(records) - 1 in (last, last + 1)
            for step, chain in known:
                following = records[int(step) + 1 :]
                assert (following[0].previous if following else after.head().chain) == chain
            for record in records[1:]:
                assert digest_bytes(after.blob(str(record.shift))) == record.shift
                assert after.facts([str(record.shift)])
            assert after.head().weights == records[-1].weights_digest or len(records) == 1
            after.blob(str(after.head().weights))
            with acknowledged.open("a") as file:
                file.write(f"{after.head().step} {after.head().chain}\n")
    assert last > 12, "the writers were killed before they wrote"


def test_a_second_process_is_refused_with_the_holders_pid(make_store: MakeStore, run_python: RunPython) -> None:
    log = make_store()
    code = """
        import sys
        from lifelong_edit.errors import StoreLockedError
        from lifelong_edit.stores import EditLog
        try:
            EditLog.open(sys.argv[1], timeout=0.2)
        except StoreLockedError as error:
            print(error)
        print(EditLog.open(sys.argv[1], read_only=True).head().step)
    """
    found = run_python(code, log.path).splitlines()
    assert f"by process {os.getpid()};" in found[0]
    assert found[1] == "0"


def test_the_lock_of_a_killed_writer_is_free(make_store: MakeStore, tmp_path: Path) -> None:
    log = make_store()
    log.close()
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(log.path), str(tmp_path / "a")], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    writer.stdout.readline()
    with pytest.raises(StoreLockedError, match=f"process {writer.pid};"):
        EditLog.open(log.path, timeout=0.1)
    writer.kill()
    writer.wait()
    writer.stdout.close()
    EditLog.open(log.path, timeout=0.1).close()


def test_a_handle_is_refused_after_a_fork(make_store: MakeStore, run_python: RunPython) -> None:
    log = make_store()
    log.close()
    code = """
        import os, sys
        from lifelong_edit.errors import StoreError
        from lifelong_edit.stores import EditLog
        log = EditLog.open(sys.argv[1])
        if not (child := os.fork()):
            for use in (log.head, log.steps, lambda: EditLog.open(sys.argv[1], timeout=0.1)):
                try:
                    use()
                except StoreError as error:
                    print(type(error).__name__, "fork" in str(error), flush=True)
            log.close()
            os._exit(0)
        os.waitpid(child, 0)
        print(log.head().step)  # the parent goes on
    """
    assert run_python(code, log.path).splitlines() == [
        "StoreError True",
        "StoreError True",
        "StoreLockedError False",
        "0",
    ]


def test_every_truncation_is_a_typed_error(make_store: MakeStore, add_step: AddStep, run_python: RunPython) -> None:
    log = make_store()
    add_step(log, size=3000)
    log.close()
    code = """
        import os, sys
        from lifelong_edit.errors import StoreDamagedError
        from lifelong_edit.stores import EditLog
        data = sys.argv[1] + "/data.mdb"
        size = os.path.getsize(data)
        for length in [*range(size - 4096, 8192, -4096 * 4), 8192, 8191, 5000, 4096, 100, 0]:
            os.truncate(data, length)
            for read_only in (False, True):
                try:
                    EditLog.open(sys.argv[1], read_only=read_only)
                    print("opened at", length)
                except StoreDamagedError as error:
                    if "truncated" not in str(error):
                        print(length, error)
        os.remove(data)
        try:
            EditLog.open(sys.argv[1])
        except StoreDamagedError as error:
            print(os.path.exists(data), "missing" in str(error))
    """
    assert run_python(code, log.path).splitlines() == ["False True"]


def test_a_database_of_zeros_is_a_typed_error(make_store: MakeStore) -> None:
    log = make_store()
    log.close()
    (log.path / "data.mdb").write_bytes(bytes(65536))
    with pytest.raises(StoreDamagedError, match="no readable database"):
        EditLog.open(log.path)


def test_a_full_disk_refuses_the_step_and_keeps_the_store(make_store: MakeStore, run_python: RunPython) -> None:
    log = make_store()
    log.close()
    code = """
        import resource, signal, sys
        from lifelong_edit.errors import StoreError
        from lifelong_edit.stores import EditLog, StepRecord, digest_bytes
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        log = EditLog.open(sys.argv[1])
        def add(size):
            head, blob = log.head(), bytes(size)
            record = StepRecord(
                step=head.step + 1, kind="edit", parent=head.step, previous=head.chain, time="t",
                shift=digest_bytes(blob), weights_digest="", live_digest="",
            )
            log.append(record, facts={}, blobs={digest_bytes(blob): blob}, weights=None)
        add(1000)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
        try:
            add(2_000_000)
        except StoreError as error:
            print("not written" in str(error))
        log.close()
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        log = EditLog.open(sys.argv[1])
        print(len(log.steps()))
        add(2_000_000)
        print(len(log.steps()))
    """
    assert run_python(code, log.path).split() == ["True", "2", "3"]


def test_a_store_deleted_while_open_takes_no_step(make_store: MakeStore, add_step: AddStep) -> None:
    log = make_store()
    shutil.rmtree(log.path)
    with pytest.raises(StoreError, match="was deleted while it was open"):
        add_step(log)


def test_a_store_replaced_while_open_takes_no_step(make_store: MakeStore, add_step: AddStep, tmp_path: Path) -> None:
    log, other = make_store(), make_store("other")
    other.close()
    shutil.rmtree(log.path)
    shutil.copytree(other.path, log.path)
    with pytest.raises(StoreError, match="was replaced while it was open"):
        add_step(log)


def test_a_failed_creation_leaves_nothing(tmp_path: Path) -> None:
    record = StepRecord(
        step=0, kind="init", parent=-1, previous="", time="", fixed="0" * 32, weights_digest="", live_digest=""
    )
    with pytest.raises(StoreError, match="names blob"):
        EditLog.create(tmp_path / "store", record, blobs={})
    assert list(tmp_path.iterdir()) == []


def test_an_unreadable_head_file_is_damage(make_store: MakeStore) -> None:
    log = make_store()
    log.close()
    for data in (b"", b"{", json.dumps({"step": "x"}).encode(), b"\xff"):
        (log.path / "HEAD").write_bytes(data)
        with pytest.raises(StoreDamagedError, match="HEAD cannot be read"):
            EditLog.open(log.path)


def test_a_folder_that_may_only_be_read_can_be_read(
    make_store: MakeStore, add_step: AddStep, run_python: RunPython
) -> None:
    log = make_store()
    add_step(log)
    log.close()
    code = """
        import os, shutil, sys, tempfile
        from pathlib import Path
        from lifelong_edit.errors import StoreError
        from lifelong_edit.stores import EditLog
        path = Path(tempfile.mkdtemp()) / "store"
        shutil.copytree(sys.argv[1], path)
        for file in path.iterdir():
            file.chmod(0o444)
        path.chmod(0o555)
        path.parent.chmod(0o755)
        owner = os.geteuid()
        if owner == 0:
            os.seteuid(65534)  # permissions do not bind root
        try:
            with EditLog.open(path, read_only=True) as log:
                print(len(log.steps()))
            try:
                EditLog.open(path)
            except StoreError as error:
                print("open it read-only" in str(error))
        finally:
            os.seteuid(owner)
            path.chmod(0o755)
            shutil.rmtree(path.parent)
    """
    assert run_python(code, log.path).split() == ["2", "True"]
