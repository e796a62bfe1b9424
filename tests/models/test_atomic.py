"""Files and folders appear whole or not at all, and reach the disk before they are seen."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lifelong_edit.atomic import remove_leftovers, replace_dir_atomic, write_bytes_atomic

TRACE = """
import os, sys
from pathlib import Path
from lifelong_edit.atomic import replace_dir_atomic, write_bytes_atomic
place = Path(sys.argv[1])
write_bytes_atomic(place / "file", b"new")
with replace_dir_atomic(place / "folder") as folder:
    (folder / "sub").mkdir()
    (folder / "sub" / "part").write_bytes(b"x")
"""


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_file_is_replaced_whole(tmp_path: Path) -> None:
    write_bytes_atomic(tmp_path / "a", b"one")
    write_bytes_atomic(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_bytes() == b"two"
    assert names(tmp_path) == ["a"]


def test_file_that_cannot_be_put_in_place_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_text("x")
    with pytest.raises(OSError):
        write_bytes_atomic(tmp_path / "a", b"one")
    assert names(tmp_path) == ["a"] and names(tmp_path / "a") == ["b"]


@pytest.mark.parametrize("exchange", [False, True])
@pytest.mark.parametrize("exists", [False, True])
def test_folder_is_replaced_whole_or_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool, exchange: bool
) -> None:
    if not exchange:  # as on a system or file system that cannot exchange two folders
        monkeypatch.setattr("lifelong_edit.atomic._exchange", lambda one, other: False)
    target = tmp_path / "deep" / "target"
    if exists:
        target.mkdir(parents=True)
        (target / "old").write_text("old")
    with pytest.raises(KeyError), replace_dir_atomic(target) as folder:
        (folder / "new").write_text("new")
        raise KeyError
    assert names(tmp_path / "deep") == (["target"] if exists else [])
    with replace_dir_atomic(target) as folder:
        (folder / "new").write_text("new")
        assert not exists or names(target) == ["old"]
    assert names(target) == ["new"] and names(tmp_path / "deep") == ["target"]


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f".out.partial-{dead.pid}").mkdir()
    (tmp_path / f".out.partial-{dead.pid}" / "part").write_text("x")
    (tmp_path / f".out.partial-{os.getppid()}").mkdir()
    (tmp_path / f".other.partial-{dead.pid}").mkdir()
    remove_leftovers(tmp_path / "out")
    assert names(tmp_path) == sorted([f".other.partial-{dead.pid}", f".out.partial-{os.getppid()}"])


def test_folder_moved_away_by_a_writer_that_died_is_put_back(tmp_path: Path) -> None:
    (tmp_path / ".out.replaced").mkdir()
    (tmp_path / ".out.replaced" / "old").write_text("old")
    remove_leftovers(tmp_path / "out")
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["old"]


def test_everything_is_forced_to_disk_before_it_is_renamed_and_the_renaming_after(tmp_path: Path) -> None:
    """The order of system calls, as the kernel sees it."""
    log = tmp_path / "log"
    place = tmp_path / "place"
    place.mkdir()
    calls = "trace=fsync,fdatasync,rename,renameat,renameat2"
    try:
        subprocess.run(["strace", "true"], check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("needs strace and the right to trace")
    command = ["strace", "-f", "-y", "-e", calls, "-o", str(log), sys.executable, "-c", TRACE, str(place)]
    subprocess.run(command, check=True, capture_output=True)
    lines = [line for line in log.read_text().splitlines() if str(place) in line]
    steps = ["rename" if "rename" in line else line.split(str(place))[1].split(">")[0] for line in lines]
    partial_file, renamed, parent, part, sub, folder, moved, last = steps
    assert partial_file.startswith("/.file.partial-") and (renamed, parent) == ("rename", "")
    assert part.endswith("/sub/part") and sub.endswith("/sub") and folder.startswith("/.folder.partial-")
    assert (moved, last) == ("rename", "")


def test_imports_no_torch() -> None:
    code = "import sys, lifelong_edit.atomic; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_only_new_never_takes_the_place_of_anything(tmp_path: Path) -> None:
    """What came there while the new folder was being filled stays; an empty folder is nothing."""
    target = tmp_path / "folder"
    with pytest.raises(FileExistsError), replace_dir_atomic(target, only_new=True) as folder:
        (folder / "a").write_text("mine")
        target.mkdir()
        (target / "a").write_text("theirs")
    assert (target / "a").read_text() == "theirs"
    with pytest.raises(FileExistsError), replace_dir_atomic(tmp_path / "file", only_new=True):
        (tmp_path / "file").write_text("theirs")
    (tmp_path / "empty").mkdir()
    with replace_dir_atomic(tmp_path / "empty", only_new=True) as folder:
        (folder / "a").write_text("mine")
    assert (tmp_path / "empty" / "a").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "folder"]
