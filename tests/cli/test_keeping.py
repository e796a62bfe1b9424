"""fsck, backup, compact and restore on the command line: what they print, and how they exit."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

Run = Callable[..., Result]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A store of four steps that needs no model."""
    with tarfile.open(Path(__file__).parents[1] / "stores" / "data" / "schema-1.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "store"


def program(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lifelong_edit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_sound_store(run: Run, store: Path) -> None:
    """One that was edited, with its weights folded as well."""
    result = run("fsck", "--weights", "--store", store, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["sound"] and found["reachable"] == [0, 1, 2, 3] and not found["findings"]
    assert "sound      yes" in run("fsck", "--store", store).stdout


def test_a_damaged_store_is_told_mended_and_told(small: Path) -> None:
    (small / "HEAD").unlink()
    done = program("fsck", "--store", small)
    assert done.returncode == 4
    assert "\ndamaged:\n  HEAD: " in done.stdout
    assert "has 1 damaged record, beginning with HEAD; try `fsck --repair`" in done.stderr
    done = program("fsck", "--repair", "--store", small)
    assert (done.returncode, "\nmended:\n  HEAD: " in done.stdout) == (0, True), done
    done = program("fsck", "--store", small, "--json")
    assert (done.returncode, json.loads(done.stdout)["sound"]) == (0, True)


def test_what_cannot_be_mended_is_named_with_what_is_out_of_reach(small: Path) -> None:
    import lmdb

    with lmdb.open(str(small), max_dbs=9) as environment, environment.begin(write=True) as transaction:
        blobs = environment.open_db(b"blobs", transaction, create=False)
        shift = json.loads(program("show", 1, "--store", small, "--json").stdout)["weights_digest"]
        assert shift
        for key, value in list(transaction.cursor(blobs)):
            if b"dense/m" in value and b"left" not in value:
                transaction.put(key, bytes(len(value)), db=blobs)
    done = program("fsck", "--repair", "--store", small)
    assert done.returncode == 4
    assert "out of reach:\n  " in done.stdout and "Traceback" not in done.stderr
    assert "restore a backup" in done.stderr


def test_a_backup_is_a_store(small: Path, tmp_path: Path) -> None:
    done = program("backup", tmp_path / "copy", "--store", small, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["head"] == 3, done
    steps = [program("log", "--json", "--store", store).stdout for store in (small, tmp_path / "copy")]
    assert steps[0] == steps[1] != ""
    done = program("backup", tmp_path / "copy", "--store", small)
    assert (done.returncode, "is already there" in done.stderr) == (2, True)


def test_no_store_is_one_line(tmp_path: Path) -> None:
    done = program("fsck", "--store", tmp_path / "nothing")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (4, "", 1)


def test_a_file_that_lmdb_dies_of_is_examined(small: Path) -> None:
    """The length of a large value, in a page that LMDB would follow beyond the end of the file."""
    data, found = (small / "data.mdb").read_bytes(), []
    for at in range(0, len(data), 4096):
        flags, lower = data[at + 10], int.from_bytes(data[at + 12 : at + 14], "little")
        if flags & 2 and lower > 16:
            node = int.from_bytes(data[at + 16 : at + 18], "little")
            changed = bytearray(data)
            changed[at + node + 2] |= 0x7F  # the upper half of its size
            (small / "data.mdb").write_bytes(changed)
            found.append(program("fsck", "--store", small).returncode)
    assert set(found) == {0, 4}, "pages that no state uses any more are no damage, all others are"
