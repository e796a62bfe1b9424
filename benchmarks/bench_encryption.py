"""What encryption at rest costs: commits, opening, reading and `fsck` of an encrypted store beside a plain one.

Both stores get the same steps without a model, in turn: each a shift of some length and its ΔW whole, 64 facts and
their places. What is measured of a step is its commit, to the disk; afterwards, in turn again, opening for reading,
opening for writing, reading every blob, and `fsck`. Ratios are of medians in the same run.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import common
from lifelong_edit.settings import KEY_VARIABLE
from lifelong_edit.stores import (
    WEIGHTS,
    Edit,
    EditLog,
    Init,
    Part,
    Place,
    digest_bytes,
    encode_tensors,
    fsck,
    write_key_file,
)

KINDS = ("plain", "encrypted")
FACTS = 64
SIZES = {"small": (64, 64), "large": (1024, 2048)}
"""Shapes of the one edited matrix: steps of 2 × 16 KiB and of 2 × 8 MiB."""


def first(shape: tuple[int, int]) -> tuple[Init, dict[str, bytes], str]:
    """Step 0, its blobs, and the one that holds ΔW whole."""
    base = encode_tensors({"m": np.zeros(shape, np.float32)})
    record = Init(step=0, parent=-1, previous="", time="", weights_digest="", live_digest="")
    return record, {digest_bytes(base): base}, digest_bytes(base)


def append(log: EditLog, shift: bytes, whole: bytes) -> None:
    """Commit one step."""
    head = log.head()
    step = head.step + 1
    facts = {digest_bytes(b"%d %d" % (step, n)): b'{"prompt":"The mayor of Town %d is"}' % n for n in range(FACTS)}
    record = Edit(
        step=step, parent=head.step, previous=head.chain, time="", added=tuple(facts),
        places=tuple(Place("0" * 32, FACTS * step + n, fact) for n, fact in enumerate(facts)),
        parts={WEIGHTS: Part(fold="sum", change=(digest_bytes(shift),), digest="")}, weights_digest="", live_digest="",
    )  # fmt: skip
    blobs = {digest_bytes(data): data for data in (shift, whole)}
    log.append(record, facts=facts, blobs=blobs, weights=digest_bytes(whole))


def read_all(path: Path) -> None:
    """Every blob that a step names, and the head's ΔW."""
    with EditLog.open(path, read_only=True) as log:
        for digest in {digest for step in log.steps() for digest in step.blobs} | {str(log.head().weights)}:
            log.blob(digest)


USES: dict[str, Callable[[Path], object]] = {
    "open for reading": lambda path: EditLog.open(path, read_only=True).close(),
    "open for writing": lambda path: EditLog.open(path).close(),
    "read all blobs": read_all,
    "fsck": lambda path: fsck(path).sound,
}


def run(folder: Path, shape: tuple[int, int], steps: int, repeats: int) -> dict[str, Any]:
    """Seconds by what was done, and how many times those of the plain store the encrypted one took."""
    random = np.random.default_rng(0)
    stores = {kind: folder / kind for kind in KINDS}
    taken: dict[str, dict[str, list[float]]] = {name: {kind: [] for kind in KINDS} for name in ("commit", *USES)}
    record, blobs, weights = first(shape)
    logs = {
        kind: EditLog.create(path, record, blobs=blobs, weights=weights, encrypt=kind == "encrypted")
        for kind, path in stores.items()
    }
    for _ in range(steps):
        shift, whole = (encode_tensors({"m": random.standard_normal(shape, np.float32)}) for _ in range(2))
        for kind, log in logs.items():
            taken["commit"][kind] += common.timed(lambda: append(log, shift, whole), repeats=1)  # noqa: B023
    for log in logs.values():
        log.close()
    for name, use in USES.items():
        for _ in range(repeats):
            for kind, path in stores.items():
                taken[name][kind] += common.timed(lambda: use(path), repeats=1)  # noqa: B023
    found: dict[str, Any] = {"steps": steps, "shape": shape}
    for name, seconds in taken.items():
        medians = {kind: common.median(seconds[kind]) for kind in KINDS}
        found[name] = medians | {"ratio": medians["encrypted"] / medians["plain"]}
    found["bytes"] = {kind: (path / "data.mdb").stat().st_size for kind, path in stores.items()}
    return found


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    results = {}
    for name, shape in SIZES.items():
        with tempfile.TemporaryDirectory(prefix="encryption-", dir=common.REPOSITORY) as folder:  # on a disk
            write_key_file(Path(folder) / "key")
            os.environ[KEY_VARIABLE] = str(Path(folder) / "key")
            found = results[name] = run(Path(folder), shape, options.steps, options.repeats)
        print(f"{name} steps")
        for what in ("commit", *USES):
            figures = found[what]
            plain, encrypted = (f"{1000 * figures[kind]:8.1f} ms {kind}" for kind in KINDS)
            print(f"{what:>17}  {plain}  {encrypted}  × {figures['ratio']:.2f}")
    common.write("encryption", results)


if __name__ == "__main__":
    main()
