"""What a solve costs where C₀ is a factor that is never multiplied out: processor seconds and
peak memory, beside bare solves.

One matrix of `--width` inputs, a factor of rank 1,024 with a diagonal, keys of earlier facts, rows of a batch, all made
up. Each way is a process of its own, so that its peak is its own: the solve by rows as the rules make it; the same
equations in six bare lines; the dense solve as it was, with C₀ multiplied out; and bare `torch.linalg.solve`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import write
from lifelong_edit.numerics.lowrank import LowRank
from lifelong_edit.numerics.solver import factorise, solve

OUT = 4096
RIDGE = 1.0


def main() -> None:
    """Measures, prints and writes `results/low_rank.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, nargs="+", default=[4096, 8192])
    parser.add_argument("--rank", type=int, default=1024)
    parser.add_argument("--earlier", type=int, default=500, help="keys of live facts that are held")
    parser.add_argument("--rows", type=int, default=500, help="of the batch")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        print(json.dumps(one(given.way, given.width[0], given.rank, given.earlier, given.rows)))
        return
    found = []
    for width in given.width:
        sizes = ["--rank", str(min(given.rank, width // 4)), "--earlier", str(given.earlier), "--rows", str(given.rows)]
        command = [sys.executable, "-m", "benchmarks.bench_low_rank", "--width", str(width), *sizes, "--way"]
        ways = {way: json.loads(subprocess.check_output([*command, way])) for way in WAYS}
        seconds, sample = ways["bare dense"]["processor_seconds"], ways["bare dense"]["sample"]
        for result in ways.values():
            result["to_the_bare_dense_solve"] = result["processor_seconds"] / seconds
            result["off"] = max(abs(a - b) / abs(b) for a, b in zip(result.pop("sample"), sample, strict=True))
        found.append({"d_in": width, "rank": min(given.rank, width // 4), "ways": ways})
        for way, result in ways.items():
            print(width, way, result, flush=True)
    write("low_rank", {"rows": given.rows, "earlier": given.earlier, "d_out": OUT, "widths": found})


def by_rows(held: LowRank, keys: Tensor, values: Tensor, weights: Tensor) -> Tensor:
    """As the rules do it."""
    return solve(keys, values, weights, held, RIDGE, factorise(held, RIDGE)).shift


def bare_rows(held: LowRank, keys: Tensor, values: Tensor, weights: Tensor) -> Tensor:
    """All rows stacked, one system of their number, no check of anything."""
    root = (held.rest + RIDGE).sqrt()
    rows = torch.cat([held.rows, weights.sqrt()[:, None] * keys]) / root
    inner = rows @ rows.T
    inner.diagonal().add_(1.0)
    nothing = torch.zeros(len(held.rows), values.shape[1], dtype=values.dtype)
    asked = torch.cat([nothing, weights.sqrt()[:, None] * values])
    found: Tensor = (rows.T @ torch.cholesky_solve(asked, torch.linalg.cholesky(inner))) / root[:, None]
    return found


def dense(held: LowRank, keys: Tensor, values: Tensor, weights: Tensor) -> Tensor:
    """As it was: C₀ multiplied out, and the system beside it."""
    return solve(keys, values, weights, held.dense(), RIDGE).shift


def bare_dense(held: LowRank, keys: Tensor, values: Tensor, weights: Tensor) -> Tensor:
    """The gram, and the library's solver on it."""
    system = held.rows.T @ held.rows
    system.addmm_((weights[:, None] * keys).T, keys)
    system.diagonal().add_(held.rest + RIDGE)
    found: Tensor = torch.linalg.solve(system, keys.T @ (weights[:, None] * values))
    return found


WAYS: dict[str, Callable[[LowRank, Tensor, Tensor, Tensor], Tensor]] = {
    "bare dense": bare_dense,
    "dense, as it was": dense,
    "bare rows": bare_rows,
    "by rows": by_rows,
}


def one(way: str, width: int, rank: int, earlier: int, count: int) -> dict[str, Any]:
    """Seconds, GiB above what the arguments take, and a few numbers of the shift."""
    g = torch.Generator().manual_seed(0)
    factor = torch.randn(rank, width, generator=g, dtype=torch.float64) * torch.logspace(1, -1, rank)[:, None].double()
    held = LowRank(factor, torch.rand(width, generator=g, dtype=torch.float64))
    held = held.plus(torch.randn(earlier, width, generator=g, dtype=torch.float64))
    keys, values = (torch.randn(count, n, generator=g, dtype=torch.float64) for n in (width, OUT))
    weights = torch.ones(count, dtype=torch.float64)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    shift = WAYS[way](held, keys, values, weights)
    seconds = time.process_time() - start
    above = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    sample = shift.flatten()[:: shift.numel() // 7].tolist()
    return {"processor_seconds": seconds, "peak_gib_above_the_arguments": above, "sample": sample}


if __name__ == "__main__":
    main()
