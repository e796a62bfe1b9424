"""Coverage-guided fuzzing (atheris, libFuzzer) of the readers that `fuzz` has, one process for each.

libFuzzer keeps what reaches code that nothing has reached before, and spoils that further. It sees the branches of this
package's Python; the libraries below (msgspec, safetensors, FAISS, LMDB, OpenSSL) are exercised, and not looked into.
An error that is not of ours, a signal, half a minute for one input or too much memory ends a process; the input that
did it is kept. `python -m tests.faults.guided NAME FOLDER ROOM SECONDS SEED` is such a process.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.faults import running

MEMORY_MIB = 2048
MAX_BYTES = 1 << 16
_INITED = re.compile(r"INITED cov: (\d+)")
_LAST = re.compile(r"cov: (\d+)")
_EXECUTED = re.compile(r"stat::number_of_executed_units: (\d+)")


def can_guide() -> bool:
    """Whether atheris is installed: it is no dependency, and has no wheel for some systems."""
    return importlib.util.find_spec("atheris") is not None


def fuzz_one(name: str, folder: Path, room: Path, seconds: int, seed: int) -> None:
    """Fuzz one reader for so long, and end the process; corpus and crashes lie in `folder`, inputs in `room`."""
    import atheris

    with atheris.instrument_imports(include=["lifelong_edit"]):
        from lifelong_edit.errors import LifelongEditError
        from tests.faults import fuzz

        target, corpus = fuzz.targets()[name], folder / "corpus"
        corpus.mkdir()
        for number, sample in enumerate(target.samples):
            (corpus / f"sample-{number}").write_bytes(sample)
            with contextlib.suppress(LifelongEditError):
                target.read(sample, room)  # so that what is imported late is instrumented too

    def read(data: bytes) -> None:
        with contextlib.suppress(LifelongEditError):
            target.read(data, room)

    options = {"max_total_time": seconds, "max_len": MAX_BYTES, "timeout": 30, "rss_limit_mb": MEMORY_MIB}
    options |= {"seed": seed + 1, "print_final_stats": 1}
    arguments = [f"-{option}={value}" for option, value in options.items()]
    atheris.Setup([sys.argv[0], f"-artifact_prefix={folder}/", *arguments, str(corpus)], read)
    atheris.Fuzz()


def long_run(folder: Path, seconds: int, seed: int) -> bool:
    """Each reader for so many seconds; what was executed, and how many branches were reached; whether none failed."""
    from tests.faults import fuzz

    memory, passed = Path("/dev/shm"), True
    for name in fuzz.targets():
        place = folder / name
        place.mkdir()
        # Inputs are written very often, so in memory where the system has room for files there.
        with tempfile.TemporaryDirectory(prefix="atheris-", dir=memory if memory.is_dir() else place) as room:
            arguments = [name, str(place), room, str(seconds), str(seed)]
            done: Any = subprocess.run(
                [sys.executable, "-m", "tests.faults.guided", *arguments],
                cwd=running.ROOT, env=running.environment(), capture_output=True, text=True, errors="replace",
            )  # fmt: skip
        crashes = [file for file in place.iterdir() if file.is_file()]
        passed &= done.returncode == 0 and not crashes
        print(f"{name:11} {_figures(done.stderr)}  crashes {len(crashes)}", flush=True)
        for crash in crashes:
            kept = folder.parent / f"atheris-{name}-{crash.name}"
            kept.write_bytes(crash.read_bytes())
            print(f"{'':11} kept as {kept}", flush=True)
        if done.returncode:
            print("\n".join(done.stderr.strip().splitlines()[-12:]), file=sys.stderr, flush=True)
    return passed


def _figures(said: str) -> str:
    began, reached = _INITED.search(said), _LAST.findall(said)
    executed = _EXECUTED.search(said)
    return (
        f"executions {executed[1] if executed else '?'}"
        f"  branches {began[1] if began else '?'} -> {reached[-1] if reached else '?'}"
    )


if __name__ == "__main__":
    fuzz_one(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
