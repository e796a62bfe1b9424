"""What is dear to measure and belongs to no store, kept per user: a second time it is read and not measured again.

Nothing here is needed: a folder that cannot be written is done without, and all of it may be removed at any time.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from lifelong_edit.atomic import write_bytes_atomic
from lifelong_edit.world import ALONE, World

MOST = 4 << 30
"""Bytes that arrays of one kind may take; beyond that those that were used longest ago are removed."""


def folder(kind: str) -> Path:
    """Where things of a kind are kept: `lifelong-edit/KIND` in XDG_CACHE_HOME, which is ~/.cache unless it is set."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "lifelong-edit" / kind


_bypassed = contextvars.ContextVar("bypassed", default=False)


@contextlib.contextmanager
def bypassed() -> Iterator[None]:
    """Within the context all is measured and nothing kept: for those who want to know what measuring takes."""
    token = _bypassed.set(True)
    try:
        yield
    finally:
        _bypassed.reset(token)


def arrays(
    kind: str, key: str, make: Callable[[], Mapping[str, np.ndarray]], world: World = ALONE
) -> Mapping[str, np.ndarray]:
    """The arrays that are kept under a key, or else those that `make` gives, which are kept then.

    key: a digest of all that decides them. What cannot be read, or is damaged, is made anew. world: the processes that
    ask; the first of them reads for all, or they all make them.
    """
    if _bypassed.get():
        return make()
    path = folder(kind) / f"{key}.safetensors"
    found = world.lead(lambda: _read(path))
    if found is not None:
        return found
    made = make()
    if world.leads:
        with contextlib.suppress(OSError):
            _write(path, made)
    return made


def _read(path: Path) -> dict[str, np.ndarray] | None:
    from safetensors.numpy import load

    with contextlib.suppress(Exception):  # a cache that is not there, not ours, or half a file says nothing
        found = {name: np.array(array) for name, array in load(path.read_bytes()).items()}  # torch writes to them
        os.utime(path)
        return found
    return None


def _write(path: Path, made: Mapping[str, np.ndarray]) -> None:
    from safetensors.numpy import save

    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomic(path, save({name: np.ascontiguousarray(array) for name, array in made.items()}))
    _make_room(path)


def _make_room(newest: Path) -> None:
    """Remove what was used longest ago until the rest is no more than MOST; the newest stays."""
    files = sorted(newest.parent.glob("*.safetensors"), key=lambda file: file.stat().st_mtime, reverse=True)
    taken = 0
    for file in files:
        taken += file.stat().st_size
        if taken > MOST and file != newest:
            file.unlink(missing_ok=True)
