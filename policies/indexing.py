"""Which kind of key index serves how many facts. All kinds find the same; they differ in time and memory alone."""

from __future__ import annotations

from typing import Literal

IndexKind = Literal["flat", "reduced"]

REDUCED_FROM = 10_000
"""Keys from which a scan of reduced keys pays for fitting its directions, 1.5 processor seconds at this size: it takes
0.012 where that of whole keys takes 0.08 (python -m benchmarks.bench_index)."""
_REFIT = 4


def plan_index(count: int, kind: IndexKind, fitted: int) -> IndexKind | None:
    """The kind that an index of `count` keys is to be rebuilt as; None where it stays as it is.

    kind: what it is. fitted: of a reduced one the number of keys that its directions were fitted on. Between half
    the bound and the bound either kind stays what it is, so that a store at the bound is not rebuilt back and forth.
    """
    if kind == "flat":
        return "reduced" if count >= REDUCED_FROM else None
    if count < REDUCED_FROM // 2:
        return "flat"
    return "reduced" if count >= _REFIT * fitted else None
