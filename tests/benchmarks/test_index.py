"""The benchmark of key indexes, on few made-up keys: does it run, and find what is there?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.bench_index import KINDS, WIDTH, one


@pytest.fixture(scope="module")
def cores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys of three relations."""
    random = np.random.default_rng(0)
    middles = np.repeat(random.standard_normal((3, WIDTH)), 20, axis=0)
    keys = (middles + 0.3 * random.standard_normal(middles.shape)).astype(np.float32)
    path = tmp_path_factory.mktemp("cores") / "cores.npz"
    np.savez(path, cores=keys, queries=keys[:25], relations=np.repeat(["a", "b", "c"], 20))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_runs(kind: str, cores: Path) -> None:
    found = one(kind, 3000, cores)
    assert found["removed_returned"] == 0
    assert found["recall"] == 1.0 if kind in ("flat", "product") else found["recall"] > 0.2
    if kind == "product":
        assert found["opened"]
        assert found["check_to_bare"] > 0
