"""5. EIO from write or sync: the step is not acknowledged, and after opening again there is the last good state."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lifelong_edit.stores import EditLog
from tests.faults import running, small

MakeStore = Callable[..., EditLog]

WRITER = """
import sys
from lifelong_edit.errors import StoreError
from lifelong_edit.stores import EditLog
from tests.faults import small

log, told = EditLog.open(sys.argv[1]), []
for _ in range(4):
    try:
        small.add(log)
        told.append(f"acknowledged {log.head().step}")
    except StoreError as error:
        known = {"not written": "refused", "HEAD could not be written": "without HEAD"}
        told.append(next((known[words] for words in known if words in str(error)), str(error)))
        log.close()
        log = EditLog.open(sys.argv[1])
        told.append(f"opened at {log.head().step}")
print(*told, small.is_whole(log), sep="\\n")
"""


@pytest.mark.parametrize(
    ("call", "number", "wanted"),
    [
        ("pwrite64", 1, None),  # the pid in the lock file, which nothing depends on
        ("pwrite64", 2, "refused"),
        ("pwrite64", 4, "refused"),  # the meta page: LMDB refuses everything until it is opened again
        ("pwrite64", 7, "refused"),
        ("fdatasync", 1, "refused"),
        ("fdatasync", 3, "refused"),
        ("fsync", 1, "without HEAD"),  # of HEAD, once the step is committed
        ("fsync", 4, "without HEAD"),
        ("rename", 2, "without HEAD"),
    ],
)
def test_a_step_that_meets_eio(make_store: MakeStore, call: str, number: int, wanted: str | None) -> None:
    if not running.can_trace():
        pytest.skip("needs strace and the right to trace")
    log = make_store()
    log.close()
    options = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"inject={call}:error=EIO:when={number}"]
    *told, whole = running.run_python(WRITER, log.path, prefix=options).splitlines()
    assert whole == "True"
    assert [line for line in told if not line.startswith(("acknowledged", "opened"))] == ([wanted] if wanted else [])
    head = 0
    for before, line in zip(["", *told], told, strict=False):
        number = int(line.split()[-1]) if line[-1].isdigit() else -1
        if line.startswith("acknowledged"):
            head += 1
            assert number == head
        elif line.startswith("opened"):
            # Committed, though not acknowledged, where HEAD alone could not be written.
            head += before == "without HEAD"
            assert number == head
    with EditLog.open(log.path) as after:
        assert after.head().step == head
        small.add(after)
