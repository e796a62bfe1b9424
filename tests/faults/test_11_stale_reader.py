"""11. Stale or live readers: a store that is written to grows by what it holds, not by what somebody once looked at."""

from __future__ import annotations

from collections.abc import Callable

from lifelong_edit.stores import EditLog
from tests.faults import small

MakeStore = Callable[..., EditLog]
RunPython = Callable[..., str]

READER = """
import os, signal, sys
from lifelong_edit.stores import EditLog
from tests.faults import small

def size():
    return os.path.getsize(sys.argv[1] + "/data.mdb")

def look(how):
    ready = os.pipe()
    if not (child := os.fork()):
        log = EditLog.open(sys.argv[1], read_only=True)
        log.steps()
        if how == "killed":
            with log._environment.reading():
                os.write(ready[1], b"x")
                signal.pause()
        os.write(ready[1], b"x")
        signal.pause()
    os.read(ready[0], 1)
    return child

children = [look(how) for how in sys.argv[2:] if how != "none"]
log = EditLog.open(sys.argv[1])
if "killed" in sys.argv:
    small.add(log, size=60)
    os.kill(children[0], signal.SIGKILL)
    os.waitpid(children.pop(0), 0)
before = size()
for _ in range(60):
    small.add(log, size=2000)
kept = sum(len(log.blob(step.shift)) for step in log.steps(1))
print(size() - before - kept)
for child in children:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


def test_killed_in_a_transaction_under_a_writer_that_stays(make_store: MakeStore, run_python: RunPython) -> None:
    """What it held is given back with the writer's next steps, which need not open the store anew."""
    beyond = {}
    for how in ("none", "killed", "idle"):
        log = make_store(how)
        small.add(log)
        log.close()
        beyond[how] = int(run_python(READER, log.path, how))
    # Weights of 32 kB are replaced by each step: pinned, they would be 60 × 32 kB = 1.9 MB.
    assert beyond["none"] < 500_000, beyond
    assert beyond["killed"] < beyond["none"] + 200_000, beyond
    assert beyond["idle"] < beyond["none"] + 200_000, beyond
