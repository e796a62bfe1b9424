"""12. A second writer fails after a timeout, naming the holder's process; readers are not in its way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from lifelong_edit.errors import StoreLockedError
from lifelong_edit.stores import EditLog
from tests.faults import running

MakeStore = Callable[..., EditLog]
RunPython = Callable[..., str]


def test_names_the_holder(make_store: MakeStore, run_python: RunPython) -> None:
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


def test_waits_as_long_as_it_was_told(make_store: MakeStore) -> None:
    log = make_store()
    for seconds in (0.1, 0.5):
        start = time.monotonic()
        with pytest.raises(StoreLockedError, match=f"gave up after {seconds:g} s"):
            EditLog.open(log.path, timeout=seconds)
        assert seconds <= time.monotonic() - start < seconds + 5


def test_gets_the_lock_of_a_writer_that_was_killed(make_store: MakeStore) -> None:
    log = make_store()
    log.close()
    code = "import signal, sys; from lifelong_edit.stores import EditLog; log = EditLog.open(sys.argv[1]); "
    code += "print(flush=True); signal.pause()"
    writer = subprocess.Popen(
        [sys.executable, "-c", code, str(log.path)], stdout=subprocess.PIPE, cwd=running.ROOT, env=running.environment()
    )
    assert writer.stdout is not None
    writer.stdout.readline()
    with pytest.raises(StoreLockedError, match=f"process {writer.pid};"):
        EditLog.open(log.path, timeout=0.1)
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    EditLog.open(log.path, timeout=0.1).close()
