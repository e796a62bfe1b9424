"""4. Disk full: an error, the store intact, and it works again when there is room."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lifelong_edit.stores import EditLog
from tests.faults import running, small

MakeStore = Callable[..., EditLog]
RunPython = Callable[..., str]


def test_a_file_that_may_not_grow(make_store: MakeStore, run_python: RunPython) -> None:
    log = make_store()
    log.close()
    code = """
        import resource, signal, sys
        from lifelong_edit.errors import StoreError
        from lifelong_edit.stores import EditLog
        from tests.faults import small
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        log = EditLog.open(sys.argv[1])
        small.add(log, size=60)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
        try:
            small.add(log, size=125_000)
        except StoreError as error:
            print("not written" in str(error))
        log.close()
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        log = EditLog.open(sys.argv[1])
        print(len(log.steps()), small.is_whole(log))
        small.add(log, size=125_000)
        print(len(log.steps()), small.is_whole(log))
    """
    assert run_python(code, log.path).split() == ["True", "2", "True", "3", "True"]


def test_a_file_system_of_two_megabytes(make_store: MakeStore, run_python: RunPython) -> None:
    """Filled to the last byte by steps; then something else makes room."""
    if not running.can_mount():
        pytest.skip("needs root and the right to mount")
    log = make_store()
    small.add(log)
    log.close()
    place = log.path.parent / "mounted"
    place.mkdir()
    code = """
        import shutil, subprocess, sys
        from pathlib import Path
        from lifelong_edit.errors import StoreError
        from lifelong_edit.stores import EditLog
        from tests.faults import small
        place = Path(sys.argv[2])
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], check=True)
        (place / "ballast").write_bytes(bytes(400_000))
        shutil.copytree(sys.argv[1], place / "store")
        log = EditLog.open(place / "store")
        refused = 0
        while refused < 3:  # again and again, without opening anew
            try:
                small.add(log, size=5000)
            except StoreError as error:
                assert "make room" in str(error), error
                refused += 1
        full = log.head().step
        log.close()
        with EditLog.open(place / "store", read_only=True) as reader:
            print(full == reader.head().step > 3, small.is_whole(reader))
        (place / "ballast").unlink()
        with EditLog.open(place / "store") as log:
            small.add(log, size=5000)
            print(log.head().step == full + 1, small.is_whole(log))
    """
    said = run_python(code, log.path, place, prefix=["unshare", "--mount"])
    assert said.split() == ["True", "True", "True", "True"]
    with EditLog.open(log.path) as log:
        assert small.is_whole(log)
