"""2. A kill between log, index and export: the log is the truth, and what is derived is made again."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from lifelong_edit.stores import EditLog
from tests.faults import small
from tests.warm import Running

MakeStore = Callable[..., EditLog]
RunPython = Callable[..., str]
Run = Callable[..., Result]

KILLED = """
import importlib, os, signal

when, module, *path, name = {point!r}.split()
owner = importlib.import_module(module)
for part in path:
    owner = getattr(owner, part)
function = getattr(owner, name)
def killed(*arguments, **options):
    if when == "after":
        function(*arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(owner, name, killed)
"""
"""The kill point: before or after a function, and where it is looked up."""
POINTS = {
    "before lifelong_edit.stores.log write_acknowledged": 1,
    "after lifelong_edit.stores.log write_acknowledged": 1,
    "before lifelong_edit.stores.index KeyIndex save": 3,
}
"""And the step at which the log stands then."""


def test_between_the_database_and_head(make_store: MakeStore) -> None:
    """HEAD is one step behind: readers take it as it is, the next writer mends it."""
    log = make_store()
    small.add(log)
    before = (log.path / "HEAD").read_bytes()
    small.add(log)
    log.close()
    (log.path / "HEAD").write_bytes(before)
    with EditLog.open(log.path, read_only=True) as reader:
        assert reader.head().step == 2
    assert (log.path / "HEAD").read_bytes() == before
    with EditLog.open(log.path) as writer:
        assert writer.head().step == 2
    assert json.loads((log.path / "HEAD").read_bytes())["step"] == 2


def test_at_any_call_while_the_index_is_kept(tmp_path: Path, run_python: RunPython) -> None:
    """Whatever is found there afterwards, of the old index, the new one or both, gives the answers of the new state."""
    code = """
        import shutil, sys
        from pathlib import Path
        import numpy as np
        from lifelong_edit.stores import KeyIndex, digest_bytes
        from tests.faults import kills
        facts = [digest_bytes(bytes([number])) for number in range(20)]
        keys = dict(zip(facts, np.random.default_rng(0).standard_normal((20, 6)).astype(np.float32)))
        def source(names):
            return np.stack([keys[name] for name in names])
        def filled(count):
            index = KeyIndex(6, source)
            index.add(facts[:count], source(facts[:count]))
            return index
        old, new, asked = filled(12), filled(20), source(facts[5:8])
        wanted, call, going, kept = new.search(asked, 4), 1, True, set()
        while going:
            folder = Path(sys.argv[1]) / str(call)
            old.save(folder, "old")
            going = kills.killed_at(call, lambda: new.save(folder, "new"))
            built = []
            found = KeyIndex.open(folder, 6, "new", lambda names: (built.append(1), source(names))[1], facts)
            kept.add(not built)
            assert found.search(asked, 4) == wanted, call
            shutil.rmtree(folder)
            call += 5
        print(call, sorted(kept))
    """
    calls, kept = run_python(code, tmp_path).strip().split(maxsplit=1)
    assert int(calls) > 50 and kept == "[False, True]"


@pytest.mark.parametrize("point", POINTS)
def test_a_stream_killed_at_a_named_point_goes_on(
    run: Run, program: Callable[..., Running], empty_store: Path, store: Path, news: Path, point: str
) -> None:
    """`store` is what the same stream made undisturbed."""
    killed = program("stream", news, "--store", empty_store, "--batch-size", 2, before=KILLED.format(point=point))
    _, said = killed.communicate(timeout=300)
    assert killed.returncode == -signal.SIGKILL, said
    with EditLog.open(empty_store, read_only=True) as log:
        assert log.head().step == POINTS[point]
    again = run("stream", news, "--store", empty_store, "--batch-size", 2)
    assert again.exit_code == 0, again.output
    with EditLog.open(empty_store, read_only=True) as found, EditLog.open(store, read_only=True) as wanted:
        assert _digests(found) == _digests(wanted)


def _digests(log: EditLog) -> list[tuple[object, ...]]:
    return [(step.kind, step.weights_digest, step.live_digest, step.places) for step in log.steps()]
