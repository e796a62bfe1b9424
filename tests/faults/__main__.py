"""The long loops: python -m tests.faults [LOOP ...] [--cycles N] [--seconds N] [--seed N].

Each prints what it did and found, and the whole ends with 1 where anything was lost, torn, wrong or not noticed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults import flips, fuzz, guided, kills, mutations, running, small, streams

Loop = Callable[[Path, int, int], bool]


def run_kills(folder: Path, cycles: int, seed: int) -> bool:
    """Random kills of a writer of small steps."""
    return tell(kills.random_kills(folder, cycles, seed=seed, longest=0.06))


def run_calls(folder: Path, cycles: int, seed: int) -> bool:
    """A kill at every `cycles`th call of a commit."""
    with small.create(folder / "template") as log:
        small.add(log)
    return tell(kills.at_every_call(folder / "template", small.add, stride=cycles))


def run_stream(folder: Path, cycles: int, seed: int) -> bool:
    """Random kills of `lifelong-edit stream` on the bundled model."""
    return tell(streams.random_kills(folder, cycles, seed=seed))


def run_power(folder: Path, cycles: int, seed: int) -> bool:
    """Power cuts under writers of steps, of exports, of backups, compactions and restorations."""
    if not running.can_mount():
        print("skipped: needs root and the right to mount")
        return True
    passed = True
    for what in ("power.power_cuts", "power.export_cuts", "keeping.keeping_cuts"):
        place = folder / what
        place.mkdir()
        code = f"import sys; from pathlib import Path; from tests.faults import keeping, power; print({what}("
        code += f"Path(sys.argv[1]), {cycles}, seed={seed}))"  # in a mount namespace of its own
        said = running.run_python(code, place, prefix=["unshare", "--mount"], timeout=60 + 10 * cycles)
        print(f"{what}: ", end="")
        passed &= tell(kills.Count(*map(int, said.split()[1::2])))
    return passed


def run_flips(folder: Path, cycles: int, seed: int) -> bool:
    """Every bit of the meta pages and a bit of every `cycles`th byte, for commands that read and that write."""
    flips.create(folder / "store")
    data, passed = (folder / "store" / "data.mdb").read_bytes(), True
    for writing in (False, True):
        counts, bad = flips.sweep(folder, flips.everywhere(data, cycles), writing=writing)
        print("writing:" if writing else "reading:", flips.table(counts), *bad, sep="\n", flush=True)
        passed &= not bad
    return passed


def run_fuzz(folder: Path, cycles: int, seed: int) -> bool:
    """Mutated files of every kind that is parsed, in a process of bounded memory."""
    return fuzz.long_run(folder, cycles, seed)


def run_atheris(folder: Path, cycles: int, seed: int) -> bool:
    """The same readers for so many seconds each, guided by the branches that an input reaches."""
    if not guided.can_guide():
        print("skipped: needs atheris (`pip install atheris`)")
        return True
    return guided.long_run(folder, cycles, seed)


def run_mutations(folder: Path, cycles: int, seed: int) -> bool:
    """Each protection (with --seed N: of fault N) taken away in a copy of the tree, whose tests must fail."""
    return mutations.run_all(folder, range(seed or 1, (seed or 26) + 1))


LOOPS: dict[str, tuple[Loop, int]] = {
    "kills": (run_kills, 10_000),
    "calls": (run_calls, 1),
    "stream": (run_stream, 200),
    "power": (run_power, 100),
    "flips": (run_flips, 7),
    "fuzz": (run_fuzz, 20_000),
    "atheris": (run_atheris, 60),
    "mutations": (run_mutations, 1),
}


def tell(found: kills.Count) -> bool:
    """Print what was counted; whether nothing was lost or torn."""
    print(found, flush=True)
    return not (found.lost or found.torn)


def main() -> int:
    """Run the loops that are named, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("loops", nargs="*", metavar="LOOP", help=", ".join(LOOPS))
    parser.add_argument("--cycles", type=int, help="how many cycles, or which stride")
    parser.add_argument("--seconds", type=int, help="of atheris: for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to work; by default where temporary files lie")
    options = parser.parse_args()
    failed = []
    for name in options.loops or LOOPS:
        if name not in LOOPS:
            parser.error(f"{name} is no loop; expected {', '.join(LOOPS)}")
        loop, cycles = LOOPS[name]
        print(f"== {name}: {loop.__doc__}", flush=True)
        start = time.monotonic()
        with tempfile.TemporaryDirectory(dir=options.folder, prefix=f"faults-{name}-") as folder:
            given = options.seconds if name == "atheris" else options.cycles
            passed = loop(Path(folder), given or cycles, options.seed)
        print(f"== {name}: {'held' if passed else 'FAILED'}, {time.monotonic() - start:.0f} s", flush=True)
        failed += [] if passed else [name]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
