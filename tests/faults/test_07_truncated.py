"""7. A truncated data file: an error of ours at every length, no SIGBUS."""

from __future__ import annotations

from collections.abc import Callable

from lifelong_edit.stores import EditLog
from tests.faults import small

MakeStore = Callable[..., EditLog]
RunPython = Callable[..., str]


def test_every_length(make_store: MakeStore, run_python: RunPython) -> None:
    log = make_store()
    small.add(log, size=3000)
    log.close()
    code = """
        import os, sys
        from lifelong_edit.errors import StoreDamagedError
        from lifelong_edit.stores import EditLog
        data = sys.argv[1] + "/data.mdb"
        size, tried = os.path.getsize(data), 0
        for length in [*range(size - 1, 8192, -2048 * 3), 8192, 8191, 5000, 4096, 100, 1]:
            os.truncate(data, length)
            for read_only in (False, True):
                tried += 1
                try:
                    EditLog.open(sys.argv[1], read_only=read_only)
                    print("opened at", length)
                except StoreDamagedError as error:
                    if "truncated" not in str(error):
                        print(length, error)
        print(tried)
    """
    assert int(run_python(code, log.path)) > 40
