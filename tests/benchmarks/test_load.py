"""The benchmark of load: what its readers look at, and that they notice what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.bench_load import SIZES, batch, commits, follow, held, make_store, report, write
from lifelong_edit import Timeline


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store after three batches."""
    folder = tmp_path_factory.mktemp("load")
    make_store(folder)
    write(folder, 3, 2)
    return folder


def test_readers_see_what_was_written(written: Path) -> None:
    step, size = follow(written / "store", 0)
    assert (step, size > 0) == (3, True)
    assert report(written / "store", 0) == (3, sum(len(f.prompt) for n in range(3) for f in batch(n, 2)))
    assert held(written / "store", 3, 2) == {"steps": 3, "facts live": 6, "facts lost": 0}
    assert held(written / "store", 4, 2)["facts lost"] == 2


def test_a_reader_notices_facts_that_are_not_those_of_the_step(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Timeline, "facts", lambda self, **_: [])
    with pytest.raises(AssertionError, match="live facts"):
        report(written / "store", 0)


def test_commits_are_measured_beside_bare_writes(tmp_path: Path) -> None:
    found = commits(tmp_path, 2)
    assert list(found) == list(SIZES)
    assert all(entry["throughput to bare"] > 0 and entry["bytes to bare"] > 1 for entry in found.values())
