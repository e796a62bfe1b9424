"""15. A folder or file system that may only be read: reading works, writing says why. One on a network: warned."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from lifelong_edit.stores import EditLog, StepRecord, filesystem
from tests.faults import running

AddStep = Callable[..., StepRecord]
MakeStore = Callable[..., EditLog]
RunPython = Callable[..., str]


def test_a_folder_without_the_right_to_write(make_store: MakeStore, add_step: AddStep, run_python: RunPython) -> None:
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


def test_a_file_system_that_is_mounted_read_only(
    make_store: MakeStore, add_step: AddStep, run_python: RunPython
) -> None:
    if not running.can_mount():
        pytest.skip("needs root and the right to mount")
    log = make_store()
    add_step(log)
    log.close()
    code = """
        import subprocess, sys
        from click.testing import CliRunner
        from lifelong_edit.cli import cli
        from lifelong_edit.errors import StoreError
        from lifelong_edit.stores import EditLog
        from tests.faults import small
        place = sys.argv[1]
        subprocess.run(["mount", "--bind", place, place], check=True)
        subprocess.run(["mount", "-o", "remount,ro,bind", place], check=True)
        with EditLog.open(place, read_only=True) as log:
            print(len(log.steps()), small.is_whole(log))
        try:
            EditLog.open(place)
        except StoreError as error:
            print("Read-only file system" in str(error), "open it read-only" in str(error))
        print(CliRunner().invoke(cli, ["rollback", "0", "--store", place]).exit_code)
    """
    said = run_python(code, log.path, prefix=["unshare", "--mount"])
    assert said.split() == ["2", "True", "True", "True", "4"]


MOUNTED = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 0:40 / {place} rw,relatime shared:2 master:1 - {kind} server:/export rw,vers=4.2
31 22 0:41 / /elsewhere rw - cifs //server/share rw
"""


@pytest.mark.parametrize(
    ("kind", "warned"), [("nfs4", True), ("cifs", True), ("fuse.sshfs", True), ("xfs", False), ("overlay", False)]
)
def test_a_network_file_system(
    make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    kind: str, warned: bool,
) -> None:  # fmt: skip
    """A fake type, in the table of mounts; the folder has a blank in its name, which that table escapes."""
    log = make_store("a store")
    log.close()
    table = tmp_path / "mounts"
    place = str(tmp_path / "a store").replace(" ", r"\\040".replace("\\\\", "\\"))
    table.write_text(MOUNTED.format(place=place, kind=kind))
    monkeypatch.setattr(filesystem, "MOUNTS", table)
    assert filesystem.kind_of(log.path) == kind
    assert filesystem.kind_of(tmp_path) == "ext4"
    for read_only in (False, True):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            EditLog.open(log.path, read_only=read_only).close()
        assert bool(caplog.records) == warned
        assert not warned or (f"({kind})" in caplog.text and "one machine at a time" in caplog.text)


def test_a_system_that_does_not_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "MOUNTS", tmp_path / "none")
    assert filesystem.kind_of(tmp_path) is None
    monkeypatch.undo()
    if filesystem.MOUNTS.exists():
        assert filesystem.kind_of(Path("/proc")) == "proc"
