"""fsck, backup, compact and restore on the command line: what they print, and how they exit."""

from __future__ import annotations

import json
import shutil
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


def test_a_backup_is_put_back_and_says_so(small: Path, tmp_path: Path) -> None:
    assert program("backup", tmp_path / "copy", "--store", small).returncode == 0
    assert program("tag", "late", "1", "--store", small).returncode == 0
    done = program("restore", tmp_path / "copy", "--store", small, "--reason", "why not", "--json")
    assert done.returncode == 0, done
    found = json.loads(done.stdout)
    assert (found["step"], found["backup_head"], found["replaced_head"]) == (4, 3, 4)
    last = json.loads(program("log", "--last", 1, "--json", "--store", small).stdout)[0]
    assert (last["kind"], last["how"], last["reason"]) == ("restore", "of a backup of step 3", "why not")
    assert program("show", "late", "--store", small).returncode == 2
    assert program("show", "late", "--store", found["kept_at"]).returncode == 0
    shutil.copyfile(tmp_path / "copy" / "data.mdb", small / "data.mdb")
    done = program("log", "--store", small)
    assert (done.returncode, "an older copy stands in its place" in done.stderr) == (4, True)


def test_what_was_dropped_is_shown_and_refused(small: Path) -> None:
    done = program("compact", "--store", small, "--dry-run", "--json")
    assert json.loads(done.stdout)["out_of_reach"] == [2] and json.loads(done.stdout)["step"] is None
    assert program("show", 2, "--store", small, "--json").stdout.count('"weights_dropped_by": null') == 1
    done = program("compact", "--store", small)
    assert done.returncode == 0 and "out_of_reach  2\n" in done.stdout
    assert "nothing was there to drop" in program("compact", "--store", small).stderr
    done = program("show", 2, "--store", small)
    assert "weights_dropped_by  4\n" in done.stdout and "Place 2" in done.stdout
    for command in (["rollback", 2], ["tag", "x", 2], ["branch", "x", 2], ["diff", 2], ["rollback", 9]):
        done = program(*command, "--store", small)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert ("dropped by step 4 (compact" in done.stderr) == (9 not in command)
    done = program("fsck", "--store", small, "--weights")
    assert done.returncode == 0 and "dropped    2\n" in done.stdout and "out of reach" not in done.stdout
    assert program("log", "--store", small).returncode == program("facts", "--at", 2, "--store", small).returncode == 0


def test_edits_after_it_are_what_they_would_have_been(run: Run, store: Path, tmp_path: Path, news: Path) -> None:
    """The same batch leaves the same digests in a store that was compacted and restored, and in one left alone."""
    other = Path(shutil.copytree(store, tmp_path / "other"))
    assert run("compact", "--store", other).exit_code == 0
    assert run("backup", tmp_path / "copy", "--store", other).exit_code == 0
    assert run("restore", tmp_path / "copy", "--store", other).exit_code == 0
    record = json.loads(news.read_text().splitlines()[0])
    changed = {**record, "subject": "Vienna 77", "prompt": "The capital of Vienna 77 is", "rephrases": []}
    (tmp_path / "late.jsonl").write_text(json.dumps(changed) + "\n")
    last = []
    for path in (store, other):
        result = run("stream", tmp_path / "late.jsonl", "--store", path)
        assert result.exit_code == 0, result.output
        last.append(json.loads(run("log", "--last", 1, "--json", "--store", path).stdout)[0])
        assert run("fsck", "--weights", "--store", path).exit_code == 0
    assert [step["kind"] for step in last] == ["edit", "edit"] and last[0]["step"] != last[1]["step"]
    assert len({(step["weights_digest"], step["live_digest"]) for step in last}) == 1


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
