"""25. An export interrupted, or its target there already: the old target intact, nothing left over.

Backups, compactions and restorations are written by the same functions, and killed before each file operation in
tests/stores; their power cuts are here.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from lifelong_edit.atomic import remove_leftovers
from tests.faults import running
from tests.faults.kills import Count
from tests.warm import Running

Run = Callable[..., Result]
RunPython = Callable[..., str]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_killed_at_any_call(tmp_path: Path, run_python: RunPython, exists: bool) -> None:
    """It is the old one, whole, or the new one, whole; what lies beside it goes with the next call."""
    code = """
        import sys
        from pathlib import Path
        from lifelong_edit.atomic import remove_leftovers, replace_dir_atomic
        from tests.faults import kills
        def fill(target, text):
            with replace_dir_atomic(target) as folder:
                (folder / "sub").mkdir()
                for name in ("a", "sub/b"):
                    (folder / name).write_text(text)
        def content(target):
            return [(target / name).read_text() for name in ("a", "sub/b")] if target.exists() else None
        call, going, seen, exists = 1, True, set(), sys.argv[2] == "True"
        while going:
            target = Path(sys.argv[1]) / str(call) / "out"
            if exists:
                fill(target, "old")
            going = kills.killed_at(call, lambda: fill(target, "new"))
            found = content(target)
            assert found in ((["old"] * 2, ["new"] * 2) if exists else (None, ["new"] * 2)), found
            seen.add(str(found))
            if target.parent.exists():
                remove_leftovers(target)
                assert [path.name for path in target.parent.iterdir()] == (["out"] if found else [])
                assert content(target) == found
            call += 11
        print(call, len(seen))
    """
    calls, seen = map(int, run_python(code, tmp_path, exists).split())
    assert calls > 200 and seen == 2


@pytest.mark.parametrize("cuts", ["power.export_cuts", "keeping.keeping_cuts"])
def test_power_cuts(tmp_path: Path, run_python: RunPython, cuts: str) -> None:
    """Exports; backups, compactions and restorations, once of a plain store and once of an encrypted one."""
    if not running.can_mount():
        pytest.skip("needs root and the right to mount")
    code = """
        import sys
        from pathlib import Path
        from tests.faults import keeping, power
        print(eval(sys.argv[2])(Path(sys.argv[1]), 3))
    """
    said = run_python(code, tmp_path, cuts, prefix=["unshare", "--mount"])
    found = Count(*map(int, said.split()[1::2]))
    assert found.cycles == 3 and found.acknowledged > 3
    assert (found.lost, found.torn) == (0, 0)


def test_a_full_disk(tmp_path: Path, run_python: RunPython) -> None:
    """The old folder stays, and nothing else."""
    code = """
        import resource, signal, sys
        from pathlib import Path
        from lifelong_edit.atomic import replace_dir_atomic, write_bytes_atomic
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        place = Path(sys.argv[1])
        def fill(size):
            with replace_dir_atomic(place / "out") as folder:
                (folder / "a").write_bytes(bytes(size))
        fill(10)
        write_bytes_atomic(place / "file", bytes(10))
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        for write in (lambda: fill(200_000), lambda: write_bytes_atomic(place / "file", bytes(200_000))):
            try:
                write()
            except OSError:
                print("refused")
        print((place / "out" / "a").stat().st_size, (place / "file").stat().st_size, len(list(place.iterdir())))
    """
    assert run_python(code, tmp_path).split() == ["refused", "refused", "10", "10", "2"]


KILLED = """
import os, signal
import lifelong_edit.atomic as atomic
function = atomic._move_into_place
def killed(*arguments):
    if {after}:
        function(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
atomic._move_into_place = killed
"""


def test_the_command_killed_before_and_after_its_folder_moves_in(
    run: Run, program: Callable[..., Running], store: Path, tmp_path: Path
) -> None:
    out = tmp_path / "exports" / "out"
    assert run("export", "--out", out, "--at", 1, "--store", store).exit_code == 0
    before = json.loads((out / "lifelong_edit.json").read_bytes())["fingerprint"]
    arguments = ["export", "--out", str(out), "--force", "--store", str(store)]
    for when in ("before", "after"):
        killed = program(*arguments, before=KILLED.format(after=when == "after"))
        _, said = killed.communicate(timeout=300)
        assert killed.returncode == -signal.SIGKILL, said
        now = json.loads((out / "lifelong_edit.json").read_bytes())["fingerprint"]
        assert (now == before) == (when == "before")
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(names(out))
        remove_leftovers(out)
        assert names(out.parent) == ["out"]
    assert run(*arguments).exit_code == 0
    assert names(out.parent) == ["out"]


def test_a_target_that_is_no_export_is_never_replaced(run: Run, store: Path, tmp_path: Path) -> None:
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "chapter").write_text("one")
    for more in ([], ["--force"]):
        result = run("export", "--out", out, "--store", store, *more)
        assert result.exit_code == 2 and "never replaced" in result.stderr
    assert names(out) == ["chapter"]
