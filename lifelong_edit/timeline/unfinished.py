"""How far a solve over all facts is, kept beside the log, so that one that was killed goes on at its last pass."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lifelong_edit.atomic import write_bytes_atomic
from lifelong_edit.errors import LifelongEditError
from lifelong_edit.stores import digest_bytes, encode_tensors
from lifelong_edit.stores.envelopes import Envelopes
from lifelong_edit.stores.tensors import decode_tensors
from lifelong_edit.world import ALONE, World

NAME = "unfinished"
_KEY = "key"


class Unfinished:
    """A bookmark (`editors.contract.Bookmark`) in the store's folder. of: what the solve is a function of, as text.

    It is no part of the store: no backup has it, and without it a solve begins anew and comes to the same. world: the
    processes that solve together, of which the first one alone reads and writes it.
    """

    def __init__(self, folder: Path, envelopes: Envelopes, of: str, world: World = ALONE) -> None:
        self._path, self._envelopes, self._of = folder / NAME, envelopes, digest_bytes(of.encode())
        self._world = world

    def read(self) -> dict[str, npt.NDArray[Any]] | None:
        """What was written last of this very solve; None without it, or where it cannot be read."""
        return self._world.lead(self._read)

    def _read(self) -> dict[str, npt.NDArray[Any]] | None:
        with contextlib.suppress(LifelongEditError, OSError, KeyError):
            sealed = self._envelopes.unseal_file(NAME, self._path.read_bytes())
            digest, data = sealed[:32], sealed[32:]
            if digest_bytes(data).encode() != digest:
                return None
            found = {name: array.copy() for name, array in decode_tensors(data, NAME).items()}
            if found.pop(_KEY).tobytes() == self._of.encode():
                return found
        return None

    def write(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Keep how far the solve is, durably. Where there is no room it goes on without."""
        if not self._world.leads:
            return
        data = encode_tensors({**arrays, _KEY: np.frombuffer(self._of.encode(), np.uint8)})
        with contextlib.suppress(OSError):
            write_bytes_atomic(self._path, self._envelopes.seal_file(NAME, digest_bytes(data).encode() + data))

    def clear(self) -> None:
        """The solve is over, or another one begins."""
        with contextlib.suppress(OSError):
            if self._world.leads:
                self._path.unlink(missing_ok=True)
