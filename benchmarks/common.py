"""What every benchmark records beside its figures: the command, the commit, the machine, the versions, the date."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
SHARED = Path(os.environ.get("LIFELONG_SHARED", REPOSITORY.parent / "shared"))
"""Public data and models to measure with, beside the repository; not part of it."""

LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "lmdb", "faiss-cpu", "safetensors")


def shared(*parts: str) -> Path:
    """A file or folder of the shared data; ends the benchmark with one line, and no failure, where it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        print(f"skipped: {Path(*parts)} is not in the folder of shared data (LIFELONG_SHARED names it)")
        raise SystemExit(0)
    return path


def machine() -> dict[str, Any]:
    """Processor, cores, threads, memory and load: enough to judge a time by."""
    import torch

    model, memory = platform.processor(), 0.0
    if (cpu := Path("/proc/cpuinfo")).exists():
        names = [
            line.split(":", 1)[1].strip() for line in cpu.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    if (meminfo := Path("/proc/meminfo")).exists():
        memory = int(meminfo.read_text().split()[1]) / 2**20
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(memory, 1),
        "load_average": round(os.getloadavg()[0], 2),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def commit() -> str:
    """The commit that is measured, with a plus sign where the tree has changes."""
    git = ["git", "-C", str(REPOSITORY)]
    head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True).stdout.strip()
    changes = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout.strip()
    return head + ("+" if changes else "")


def command() -> str:
    """The command line that was run, as one would type it at the root of the repository."""
    script = Path(sys.argv[0]).resolve()
    if script.is_relative_to(REPOSITORY):
        module = ".".join(script.relative_to(REPOSITORY).with_suffix("").parts)
        return shlex.join(["python", "-m", module, *sys.argv[1:]])
    return shlex.join([script.name, *sys.argv[1:]])


def provenance() -> dict[str, Any]:
    """All that is recorded beside the figures."""
    return {
        "command": command(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def write(name: str, results: Mapping[str, Any] | Sequence[Any], folder: Path = RESULTS) -> Path:
    """Leaves `results/NAME.json` with the figures and where they come from; floats to six digits."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    record = {"benchmark": name, **provenance(), "results": rounded(results)}
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path}")
    return path


def rounded(value: Any) -> Any:
    """The same with every float cut to six digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {str(key): rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    return value


def timed(what: Callable[[], object], repeats: int = 3) -> list[float]:
    """Wall seconds of each of `repeats` calls."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        what()
        seconds.append(time.perf_counter() - start)
    return seconds


def median(values: Sequence[float]) -> float:
    """The middle one: on a machine with neighbours the mean says more about them."""
    return float(statistics.median(values))


@contextmanager
def stopwatch(into: dict[str, float], name: str) -> Iterator[None]:
    """Adds the wall seconds of the block to `into[name]`."""
    start = time.perf_counter()
    try:
        yield
    finally:
        into[name] = into.get(name, 0.0) + time.perf_counter() - start


def folder_bytes(folder: Path) -> int:
    """Bytes that the files of a folder take on the disk, holes left out."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
