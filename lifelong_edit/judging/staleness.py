"""How far stored keys have drifted from those of today's model: what batches hold of old facts, and how well.

Later batches know an earlier fact by its keys as they were traced last. When a lower module changes, the keys of the
modules above it are no longer these; the keys of the lowest edited module never go stale. Knows no store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lifelong_edit.bench import Bench
from lifelong_edit.editors.ridge.passes import fact_keys
from lifelong_edit.facts import Fact
from lifelong_edit.numerics.grams import FactKeys
from lifelong_edit.tracing.rows import Row, draw
from lifelong_edit.tracing.trace import trace

RowsOf = Callable[[Sequence[Fact]], Sequence[Row]]
"""The rows of facts whose keys a rule keeps."""
SAMPLE = 200
"""Live facts whose keys are traced."""
CHUNK = 64
"""Facts that are traced at a time."""


def staleness(
    bench: Bench,
    rows_of: RowsOf,
    facts: Sequence[Fact],
    stored: Mapping[str, FactKeys],
    ages: Mapping[str, int],
    identity: str,
) -> dict[str, Any]:
    """The drift ‖k_now − k_stored‖ / ‖k_stored‖ of stored keys at the model's present weights, as plain values.

    Norms are Frobenius over all rows of a fact, both keys on the grid. The sample is drawn by `identity`, whatever the
    order of the facts; a rule may keep no keys of them. rows_of: as the rule has them (`Editor.kept_rows`). stored,
    ages: keys of each fact by digest, and how many edit steps ago they were traced.
    Returns `live` and `sampled`, numbers of facts, and `drift`: rows with `module`, `ages` (first and last of a bin;
    None: all together), `facts`, `median`, `p90`.
    """
    ordered = sorted((fact for fact in facts if stored[fact.digest].rows), key=lambda fact: fact.digest)
    sample = [ordered[i] for i in draw(len(ordered), SAMPLE, "staleness", bench.settings.seed, identity)]
    found = drifts(bench, rows_of, sample, stored)
    bins: dict[tuple[int, int] | None, list[str]] = {None: [fact.digest for fact in sample]} if sample else {}
    for digest in sorted(found, key=lambda digest: ages[digest]):
        bins.setdefault(age_bin(ages[digest]), []).append(digest)
    rows = [
        {"module": name, "ages": span and list(span), **_summary([found[digest][name] for digest in digests])}
        for name in bench.names
        for span, digests in bins.items()
    ]
    return {"live": len(facts), "sampled": len(sample), "drift": rows}


def drifts(
    bench: Bench, rows_of: RowsOf, facts: Sequence[Fact], stored: Mapping[str, FactKeys]
) -> dict[str, dict[str, float]]:
    """Per fact and module the relative drift of its stored keys at the model's present weights.

    Keys of a fact's own words: those that it took over from what it replaced are stored behind them.
    """
    found: dict[str, dict[str, float]] = {}
    conflict = {digest: keys.conflict for digest, keys in stored.items()}
    for start in range(0, len(facts), CHUNK):
        rows = rows_of(facts[start : start + CHUNK])
        traced = trace(bench.loaded, rows, bench.settings.micro_batch, gradients=False)
        for digest, present in fact_keys(bench, traced, rows, conflict).items():
            found[digest] = {
                name: _relative(now, stored[digest].rows[name][: len(now)], bench.scale[name].cpu().numpy())
                for name, now in present.rows.items()
            }
    return found


def age_bin(age: int) -> tuple[int, int]:
    """The bin of an age, first and last: 0, 1, 2 to 3, 4 to 7, and so on by powers of two."""
    first = 1 << age.bit_length() - 1 if age else 0
    return first, max(2 * first - 1, first)


def _relative(present: np.ndarray, stored: np.ndarray, scale: np.ndarray) -> float:
    """Relative difference of keys on the grid, (n, d_in) int16 each; keys that are all zero count as one unit."""
    before = stored * scale
    norm = max(float(np.linalg.norm(before)), float(scale.min()))
    return float(np.linalg.norm(present * scale - before)) / norm


def _summary(drift: Sequence[float]) -> dict[str, float]:
    return {"facts": len(drift), "median": float(np.median(drift)), "p90": float(np.percentile(drift, 90))}
