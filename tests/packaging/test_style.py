"""ruff on the repository, mypy --strict on the wheel."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("options", [("check",), ("format", "--check", "--diff")], ids=["check", "format"])
def test_ruff(options: tuple[str, ...], run_tool: Callable[..., str]) -> None:
    run_tool([sys.executable, "-m", "ruff", *options, "."], REPOSITORY)


def test_mypy_strict_on_the_wheel(target: Path, run_tool: Callable[..., str], tmp_path: Path) -> None:
    """Type checkers do not follow an editable install's package-dir, so they get the wheel, from another folder."""
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", REPOSITORY / "pyproject.toml"]
    # The cache of the repository, so that the types of torch are not read anew in every run.
    cache = REPOSITORY / ".mypy_cache" / "wheel"
    run_tool([*command, "--cache-dir", cache, "-p", "lifelong_edit"], tmp_path, {"MYPYPATH": str(target)})
