"""Time and memory of `fsck` and `backup` per GiB, beside their floors in the same run: a bare read, a bare copy.

A store is made of steps without a model: each has a shift of a few MiB of random numbers, a fact and its place; now and
then ΔW is stored whole. Every operation runs in a process of its own, after the file has been read once, so that all
find it in the page cache alike. The floor of `fsck` reads the data file and digests it as the store digests (BLAKE2b,
128 bits), a MiB at a time; that of `backup` copies the file and forces it to disk. Memory is what a process holds for
itself (RssAnon), sampled from outside every few milliseconds, less what it held once everything was imported: mapped
pages of the file belong to the page cache.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks import common
from lifelong_edit.facts import Fact
from lifelong_edit.stores import (
    WEIGHTS,
    Dense,
    Edit,
    EditLog,
    Init,
    Part,
    Place,
    digest_bytes,
    encode_shifts,
    encode_tensors,
    tensors_digest,
)

SHAPE = (1024, 2048)
GIB = 1 << 30
OPERATIONS = {
    "read": """
import hashlib
state = hashlib.blake2b(digest_size=16)
with open(source + "/data.mdb", "rb", buffering=0) as file:
    while chunk := file.read(1 << 20):
        state.update(chunk)
""",
    "fsck": "assert fsck(source).sound",
    "copy": """
import os, shutil
shutil.copyfile(source + "/data.mdb", target)
descriptor = os.open(target, os.O_RDONLY)
os.fsync(descriptor)
""",
    "backup": "backup(source, target)",
}
"""The floor of each operation stands before it."""
HEAD = """
import sys
from lifelong_edit.stores import backup, fsck
source, target = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
"""


def make(path: Path, size: int) -> int:
    """A store of about so many bytes of payload; the number of its steps."""
    random, zero = np.random.default_rng(0), np.zeros(SHAPE, np.float32)
    base = encode_tensors({"m": zero})
    digest = tensors_digest({"m": zero})
    record = Init(step=0, parent=-1, previous="", time="", weights_digest=digest, live_digest="")
    made = 0
    with EditLog.create(path, record, blobs={digest_bytes(base): base}, weights=digest_bytes(base)) as log:
        while made < size:
            head = log.head()
            step = head.step + 1
            array = random.standard_normal(SHAPE, np.float32)
            shift, whole = encode_shifts({"m": Dense(array)}), encode_tensors({"m": array})
            kept, digest = digest_bytes(whole) if step % 10 == 0 else None, tensors_digest({"m": array})
            fact = Fact(subject=f"Town {step}", prompt=f"The mayor of Town {step} is", target=f"Person {step}")
            record = Edit(
                step=step, parent=head.step, previous=head.chain, time="", added=(fact.digest,), live_digest="",
                places=(Place("0" * 32, step, fact.digest),), weights_digest=digest,
                parts={WEIGHTS: Part(fold="sum", change=(digest_bytes(shift),), whole=kept, digest=digest)},
            )  # fmt: skip
            blobs = {digest_bytes(data): data for data in (shift, whole)}
            log.append(record, facts={fact.digest: msgspec.json.encode(fact)}, blobs=blobs, weights=digest_bytes(whole))
            made += len(shift) + (len(whole) if kept else 0)
        return log.head().step


def anonymous(pid: int) -> int:
    """Bytes that a process holds for itself, 0 once it has ended."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def measure(name: str, store: Path, target: Path) -> dict[str, float]:
    """Wall seconds and peak memory of an operation in a process of its own."""
    (store / "data.mdb").read_bytes()
    with subprocess.Popen(
        [sys.executable, "-c", HEAD + OPERATIONS[name], str(store), str(target)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()
        before = peak = anonymous(process.pid)
        started = time.perf_counter()
        print(file=process.stdin, flush=True)
        while process.poll() is None:
            peak = max(peak, anonymous(process.pid))
            time.sleep(0.002)
        seconds = time.perf_counter() - started
    assert process.returncode == 0
    if target.is_dir():
        shutil.rmtree(target)
    target.unlink(missing_ok=True)
    return {"seconds": seconds, "mib": (peak - before) / 2**20}


def run(gib: float, repeats: int) -> dict[str, Any]:
    """Figures by operation: the median of the seconds per GiB, and the most memory of all repeats."""
    with tempfile.TemporaryDirectory() as folder:
        store, target = Path(folder) / "store", Path(folder) / "copy"
        steps = make(store, int(gib * GIB))
        size = (store / "data.mdb").stat().st_size
        found: dict[str, Any] = {"steps": steps, "bytes": size}
        taken = {name: [measure(name, store, target) for name in [name] * repeats] for name in OPERATIONS}
    for name, figures in taken.items():
        seconds = common.median([figure["seconds"] for figure in figures])
        found[name] = {"seconds_per_gib": seconds * GIB / size, "peak_mib": max(figure["mib"] for figure in figures)}
    for name, floor in (("fsck", "read"), ("backup", "copy")):
        found[name]["times_the_floor"] = found[name]["seconds_per_gib"] / found[floor]["seconds_per_gib"]
    return found


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--gib", type=float, default=0.75, help="payload of the store")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    found = run(options.gib, options.repeats)
    print(f"{found['steps']} steps, {found['bytes'] / GIB:.2f} GiB")
    for name in OPERATIONS:
        figures = found[name]
        times = f"  {figures['times_the_floor']:.2f} times the floor" if "times_the_floor" in figures else ""
        print(f"{name:>7}  {figures['seconds_per_gib']:6.2f} s per GiB  {figures['peak_mib']:7.1f} MiB{times}")
    common.write("keeping", found)


if __name__ == "__main__":
    main()
