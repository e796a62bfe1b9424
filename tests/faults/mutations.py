"""Each protection taken away in a copy of the tree, where the tests of its fault must fail.

A mutation is a fault's number, a file, a piece of its text that stands there once, what to put in its place, and the
tests that notice. `python -m tests.faults mutations` runs them; that all of them still apply is a test of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

from tests.faults import running

COPIED = ("lifelong_edit", "stores", "policies", "eval", "tests", "pyproject.toml")


class Mutation(NamedTuple):
    """`tests`: a file in tests/faults, and what pytest's -k selects of it."""

    fault: int
    file: str
    old: str
    new: str
    tests: str
    select: str = ""


def _read() -> list[Mutation]:
    found = tomllib.loads((Path(__file__).parent / "mutations.toml").read_text(encoding="utf-8"))
    return [Mutation(**entry) for entry in found["mutation"]]


MUTATIONS = _read()


def apply(mutation: Mutation, root: Path) -> None:
    """Change a file of a tree. Raises LookupError where its text is not there exactly once."""
    file = root / mutation.file
    text = file.read_text(encoding="utf-8")
    if text.count(mutation.old) != 1:
        raise LookupError(f"{mutation.file} has {text.count(mutation.old)} times: {mutation.old!r}")
    file.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")


def copy_tree(folder: Path) -> None:
    """What tests of the package need, with the three packages that stand elsewhere where Python looks for them."""
    for name in COPIED:
        source = running.ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    for name in ("stores", "policies", "eval"):
        (folder / "lifelong_edit" / name).symlink_to(folder / name)


def noticed(mutation: Mutation, folder: Path) -> tuple[bool, str]:
    """Whether the tests of a mutated tree fail, and what pytest says last. Skipped tests notice nothing."""
    command = [sys.executable, "-m", "pytest", f"tests/faults/{mutation.tests}", "-q", "-x", "-p", "no:cacheprovider"]
    command += ["-k", mutation.select] if mutation.select else []
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    said = done.stdout.strip().splitlines() or [done.stderr.strip()[-200:]]
    return done.returncode == 1 and "failed" in said[-1], said[-1]


def run_all(folder: Path, faults: range) -> bool:
    """Run the mutations of these faults one after the other; whether each of them was noticed."""
    passed, count = True, 0
    chosen = [mutation for mutation in MUTATIONS if mutation.fault in faults]
    for number, mutation in enumerate(chosen):
        tree = folder / str(number)
        tree.mkdir()
        copy_tree(tree)
        apply(mutation, tree)
        seen, said = noticed(mutation, tree)
        where = f"{mutation.tests}{f' -k {mutation.select!r}' if mutation.select else ''}"
        print(
            f"{mutation.fault:3} {'noticed' if seen else 'NOT NOTICED'}: {mutation.file}, {where}: {said}", flush=True
        )
        passed, count = passed and seen, count + seen
        shutil.rmtree(tree)
    print(f"mutations {len(chosen)}  noticed {count}", flush=True)
    return passed
