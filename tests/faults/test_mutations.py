"""The mutations that `make faults` runs: each still applies, each fault has one, and a tree that is whole passes."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import pytest

from tests.faults import mutations, running

ROWS = range(1, 27)


@pytest.mark.parametrize("number", range(len(mutations.MUTATIONS)))
def test_applies_and_can_be_compiled(tmp_path: Path, number: int) -> None:
    mutation = mutations.MUTATIONS[number]
    (tmp_path / mutation.file).parent.mkdir(parents=True)
    shutil.copy(running.ROOT / mutation.file, tmp_path / mutation.file)
    mutations.apply(mutation, tmp_path)
    ast.parse((tmp_path / mutation.file).read_text())
    assert (running.ROOT / "tests" / "faults" / mutation.tests).is_file()
    assert mutation.tests.startswith(f"test_{mutation.fault:02}_")


def test_a_text_that_is_gone_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\nx = 1\n")
    for old in ("x = 1\n", "y = 1\n"):
        with pytest.raises(LookupError, match=r"a\.py has [02] times"):
            mutations.apply(mutations.Mutation(1, "a.py", old, "", "test_01_sigkill.py"), tmp_path)


def test_every_fault_has_a_file_and_a_mutation() -> None:
    files = sorted(path.name[5:7] for path in (running.ROOT / "tests" / "faults").glob("test_[0-9][0-9]_*.py"))
    assert files == [f"{number:02}" for number in ROWS]
    assert {mutation.fault for mutation in mutations.MUTATIONS} == set(ROWS)


def test_a_tree_that_is_whole_passes(tmp_path: Path) -> None:
    """So that a mutation is noticed for what it changes, not because the copy lacks something."""
    mutations.copy_tree(tmp_path)
    whole = mutations.Mutation(14, "stores/lock.py", "POLL = 0.05", "POLL = 0.05", "test_14_deleted.py")
    seen, said = mutations.noticed(whole, tmp_path)
    assert not seen and "2 passed" in said
