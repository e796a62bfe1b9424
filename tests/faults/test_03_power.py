"""3. Power loss: as a kill, with what had been forced to the disk and nothing else. Exports are in 25."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lifelong_edit.stores import EditLog
from tests.faults import running
from tests.faults.kills import Count

MakeStore = Callable[..., EditLog]
RunPython = Callable[..., str]


def test_power_cuts(tmp_path: Path, run_python: RunPython) -> None:
    if not running.can_mount():
        pytest.skip("needs root and the right to mount")
    code = """
        import sys
        from pathlib import Path
        from tests.faults import power
        print(power.power_cuts(Path(sys.argv[1]), 3))
    """
    said = run_python(code, tmp_path, prefix=["unshare", "--mount"])
    found = Count(*map(int, said.split()[1::2]))
    assert found.cycles == 3 and found.acknowledged > 5
    assert (found.lost, found.torn) == (0, 0)


def test_a_step_is_on_the_disk_before_it_is_acknowledged(make_store: MakeStore, tmp_path: Path) -> None:
    """The order of system calls: the database is synced, then HEAD is replaced, then the step is told."""
    if not running.can_trace():
        pytest.skip("needs strace and the right to trace")
    log, trace = make_store(), tmp_path / "trace"
    log.close()
    calls = "trace=fdatasync,fsync,rename,renameat,renameat2,write"
    code = """
        import sys
        from lifelong_edit.stores import EditLog
        from tests.faults import small
        with EditLog.open(sys.argv[1]) as log:
            print("begin", flush=True)
            small.add(log)
            print("acknowledged", flush=True)
    """
    running.run_python(code, log.path, prefix=["strace", "-f", "-y", "-e", calls, "-o", str(trace)])
    lines = [line.split(maxsplit=1)[1] for line in trace.read_text().splitlines() if "(" in line]
    start, end = (next(i for i, line in enumerate(lines) if f'"{word}' in line) for word in ("begin", "acknowledged"))
    seen = [(line.split("(")[0], line) for line in lines[start + 1 : end]]
    order = [name if name != "write" else "HEAD" for name, line in seen if name != "write" or ".HEAD.partial-" in line]
    order = ["rename" if name.startswith("rename") else name for name in order]
    assert order[-4:] == ["HEAD", "fsync", "rename", "fsync"]
    assert "fdatasync" in order[:-4], order
    synced = next(line for name, line in seen if name == "fdatasync")
    assert "data.mdb" in synced
