"""1. SIGKILL at any moment: every acknowledged step is there, at most one more, none torn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lifelong_edit.stores import EditLog
from tests.faults import kills, small

MakeStore = Callable[..., EditLog]
RunPython = Callable[..., str]


def count(said: str) -> kills.Count:
    return kills.Count(*map(int, said.split()[1::2]))


def test_at_any_call_of_a_commit(make_store: MakeStore, run_python: RunPython) -> None:
    log = make_store()
    small.add(log)
    log.close()
    code = """
        import sys
        from pathlib import Path
        from tests.faults import kills, small
        print(kills.at_every_call(Path(sys.argv[1]), small.add, stride=11))
    """
    found = count(run_python(code, log.path))
    assert found.cycles > 50 and found.acknowledged
    assert (found.lost, found.torn) == (0, 0)


def test_at_random(tmp_path: Path, run_python: RunPython) -> None:
    code = """
        import sys
        from pathlib import Path
        from tests.faults import kills
        print(kills.random_kills(Path(sys.argv[1]), 25, longest=0.06))
    """
    found = count(run_python(code, tmp_path))
    assert found.cycles == 25 and found.acknowledged > 5
    assert (found.lost, found.torn) == (0, 0)


def test_while_a_store_is_made(tmp_path: Path, run_python: RunPython) -> None:
    """It is there, complete, or nothing is; what is left beside it is in nobody's way."""
    code = """
        import sys
        from pathlib import Path
        from lifelong_edit.stores import EditLog
        from tests.faults import kills, small
        call, going, made = 1, True, []
        while going:
            store = Path(sys.argv[1]) / str(call) / "store"
            store.parent.mkdir()
            going = kills.killed_at(call, lambda: small.create(store))
            made.append(store.exists())
            if not store.exists():
                small.create(store).close()
            with EditLog.open(store) as log:
                small.add(log)
                assert small.is_whole(log)
            assert [path.name for path in store.parent.iterdir()] == ["store"]
            call += 197
        print(made.count(False), made.count(True))
    """
    nothing, complete = map(int, run_python(code, tmp_path).split())
    assert nothing > 5 and complete


def test_what_is_lost_or_torn_is_counted(make_store: MakeStore) -> None:
    log = make_store()
    first, second = small.add(log), small.add(log)
    chain = log.head().chain
    log.close()
    known: list[tuple[int, str | None]] = [(1, second.previous), (2, chain)]
    assert kills.judge(log.path, known, 0) == (1, 2, 0, 0)
    assert kills.judge(log.path, [(first.step, None)], 0) == (1, 1, 0, 0)  # one unacknowledged step is allowed
    assert kills.judge(log.path, [], 0) == (1, 0, 0, 1)  # two are not
    assert kills.judge(log.path, [*known, (3, "c")], 0).lost == 1
    assert kills.judge(log.path, [(2, "another")], 0).lost == 1
