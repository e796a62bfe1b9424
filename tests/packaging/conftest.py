"""The wheel, built once per run from a copy of the sources, and two places where it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "lifelong_edit", "stores", "policies", "eval")


def run(command: Sequence[str | Path], cwd: Path, env: Mapping[str, str] | None = None) -> str:
    """The standard output of a command that has to succeed; its whole output when it does not."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": "", **(env or {})},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, f"{command} gave {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def pip_install(wheel: Path, pip_options: Sequence[str | Path] = (), options: Sequence[str | Path] = ()) -> None:
    """Installs the wheel alone, without bytecode; what it depends on is there already."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", *pip_options]
    run([*pip, "install", "--quiet", "--no-deps", "--no-index", "--no-compile", *options, wheel], wheel.parent)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the working tree. Built from a copy: setuptools would leave a build/ folder in the tree."""
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (REPOSITORY / name).is_dir():
            shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(REPOSITORY / name, source / name)
    out = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source], out)
    (built,) = out.glob("*.whl")
    return built


@dataclass(frozen=True)
class Installed:
    """A clean environment that holds the wheel, and a folder far from the repository to run it from."""

    bin: Path
    elsewhere: Path

    def run(self, *command: str, cwd: Path | None = None) -> str:
        """Standard output of a program of the environment; fails when its exit status is not 0."""
        env = {"PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
        return run([self.bin / command[0], *command[1:]], cwd or self.elsewhere, env)


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in a fresh environment.

    Its dependencies are lent by the environment that the tests run in, through a path file: that brings their
    modules, but not the hook of the editable install, since path files are read in site folders only. It may itself
    have been lent some.
    """
    home = tmp_path_factory.mktemp("environment")
    run([sys.executable, "-m", "venv", "--without-pip", home], home)
    bin_folder = home / ("Scripts" if os.name == "nt" else "bin")
    pip_install(wheel, pip_options=["--python", bin_folder / "python"])
    (site,) = (path.parent for path in home.rglob("lifelong_edit") if path.parent.name == "site-packages")
    lent = [path for path in sys.path if Path(path).name == Path(sysconfig.get_path("purelib")).name]
    (site / "dependencies.pth").write_text("".join(f"{path}\n" for path in lent))
    return Installed(bin=bin_folder, elsewhere=tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture(scope="session")
def target(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel unpacked into a folder: the layout that type checkers understand."""
    folder = tmp_path_factory.mktemp("target")
    pip_install(wheel, options=["--target", folder])
    return folder


@pytest.fixture(scope="session")
def run_tool() -> Callable[..., str]:
    """`run` for the test modules, which cannot import this one."""
    return run
