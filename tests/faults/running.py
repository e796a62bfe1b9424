"""Processes of their own: Python code, the tools of a Linux system, and what is skipped where these are missing."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_ADDED = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def environment(**more: str) -> dict[str, str]:
    """What a process of its own finds in its environment."""
    return {**os.environ, **_ADDED, **more}


def run_python(code: str, *arguments: object, prefix: Sequence[str] = (), timeout: float = 300) -> str:
    """What the code printed. Fails where it dies. prefix: what runs Python, as `strace` with its options."""
    command = [*prefix, sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=ROOT, env=environment())
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@functools.cache
def can_trace() -> bool:
    """Whether strace is here and may be used."""
    return shutil.which("strace") is not None and not subprocess.run(["strace", "true"], capture_output=True).returncode


@functools.cache
def can_mount() -> bool:
    """Whether this process may mount file systems."""
    if os.geteuid() or shutil.which("mount") is None:
        return False
    done = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False
    )
    return not done.returncode
