"""Models and stores that many tests begin with: made once in a run of the tests, whichever process asks first.

They lie in the folder of the run, which its processes share, under a digest of what makes them; so nothing is kept from
one run to the next, and nothing can be out of date. The originals are only read: what writes gets a copy.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lifelong_edit.stores import digest_bytes


class Zoo:
    """What was made so far, in a folder that processes share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def keep(self, name: str, made_of: object, make: Callable[[Path], object]) -> Path:
        """The folder that `make` fills, made now if nobody has made it; only to be read.

        made_of: all that the folder's content depends on, as msgspec encodes it. make: gets a path where nothing is
        yet; where it raises, nothing is kept.
        """
        digest = digest_bytes(name.encode(), msgspec.json.encode(made_of, order="deterministic"))
        home = self._folder / f"{name}-{digest[:16]}"
        with _locked(home.with_suffix(".lock")):
            if not home.exists():
                begun = home.with_suffix(".begun")
                shutil.rmtree(begun, ignore_errors=True)
                make(begun)
                begun.rename(home)
        return home

    def copy(self, name: str, made_of: object, make: Callable[[Path], object], to: Path) -> Path:
        """A copy of the same at another path, to write to."""
        return Path(shutil.copytree(self.keep(name, made_of, make), to))

    def model(self, kind: str, options: dict[str, Any], tokenizer: Any, *, seed: int, spread: float = 0.2) -> Path:
        """A folder with a causal language model of random weights, and the tokenizer.

        Matrices are normal with deviation `spread`: the start of transformers (0.02) gives nearly uniform answers, a
        wider one gives each prompt its own. Vectors stay as they begin.
        """

        def make(folder: Path) -> None:
            import torch
            from transformers import AutoConfig, AutoModelForCausalLM

            with torch.random.fork_rng():
                torch.manual_seed(seed)
                model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **options))
                for parameter in model.parameters():
                    if parameter.dim() > 1:
                        parameter.data.normal_(0, spread)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)

        return self.keep(kind, [options, tokenizer.get_vocab(), seed, spread], make)


def folder_of_run(config: pytest.Config, base: Path) -> Path:
    """The folder that all processes of a run of the tests share. base: this process's own, of pytest."""
    return (base.parent if hasattr(config, "workerinput") else base) / "zoo"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
