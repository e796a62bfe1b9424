"""What C₀ as a factor of low rank and a diagonal costs and spares, beside the whole gram in double precision.

On trex-gpt2-mini (d_in 1,152): the error of C₀ (Frobenius, relative), of the shift of 50 facts, and efficacy,
generality and locality after four batches of held-out training facts, for ranks that are shares of d_in; the same for
the whole gram stored in single precision. At a d_in of 16,384: seconds and memory of the sketch, on made-up keys.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.common import write
from benchmarks.data import trex_facts, trex_model, wikitext
from lifelong_edit import Settings
from lifelong_edit.bench import Bench, Fixed, State, prepare
from lifelong_edit.editors.contract import Lesson
from lifelong_edit.editors.gradient.rule import make
from lifelong_edit.facts import Probe
from lifelong_edit.models import load_model
from lifelong_edit.numerics.textgram import gram_sum
from lifelong_edit.stores import materialise
from lifelong_edit.training.episodes import TrainSettings, divided
from lifelong_edit.training.run import hold_out, validate

SHARES = (4, 16)
"""Ranks: d_in divided by these; the rule's 1,024 of 16,384 is the last."""
WIDE, WIDE_RANK, WIDE_KEYS = 16_384, 1024, 1024


def main() -> None:
    """Measures, prints and writes `results/text_gram.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--facts", type=int, default=200, help="held-out facts that are taught")
    parser.add_argument("--tokens", type=int, default=60_000, help="of text that the gram is taken over")
    parser.add_argument("--no-wide", action="store_true", help="leave the d_in of 16,384 out")
    given = parser.parse_args()
    wide = None if given.no_wide else wide_sketch()
    write("text_gram", {"ranks": on_a_model(given.facts, given.tokens), "wide": wide})


def on_a_model(count: int, tokens: int) -> list[dict[str, Any]]:
    """Errors and scores by kind of gram; everything is compared with the whole gram in double precision."""
    loaded = load_model(str(trex_model()))
    text = [wikitext("valid")]
    own, rest = divided(trex_facts("train"), TrainSettings())
    held = hold_out(rest, count, 0)
    probes = [Probe(f.prompt, f.target_true, f.subject, f.relation) for f in own]
    settings = Settings(editor="gradient", text_tokens=tokens, more_passes=0, gram_rank=0)
    fixed = prepare(loaded, settings, text=text, preserve=probes)
    width = loaded.modules[0].d_in
    kinds = {"whole, double": fixed}
    kinds["whole, single"] = of_grams(fixed, {n: gram.astype(np.float32) for n, gram in fixed.text.grams.items()})
    for share in SHARES:
        found = prepare(loaded, settings.replace(gram_rank=width // share), text=text)
        kinds[f"rank {width // share} (d_in / {share})"] = of_grams(fixed, found.text.grams)
    reference: dict[str, Any] = {}
    results = []
    for kind, made in kinds.items():
        bench = Bench(loaded, settings, made)
        editor = make(bench)
        grams = {n: bench.text_gram[n] for n in bench.names}
        change = editor.learn(State(digest="bench"), Lesson(held.taught[:50]))
        shifts = {n: torch.from_numpy(materialise(s)) for n, s in (change.shift or {}).items()}
        reference = reference or {"gram": grams, "shift": shifts}
        scores = validate(loaded, editor, held, 50)
        result = {
            "gram": kind,
            "bytes": sum(gram.nbytes for gram in made.text.grams.values()),
            "gram_error": worst(grams, reference["gram"]),
            "shift_error": worst(shifts, reference["shift"]),
            "efficacy": scores.efficacy,
            "generality": scores.generality,
            "locality": scores.locality,
        }
        print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in result.items()), flush=True)
        results.append(result)
    return results


def of_grams(fixed: Fixed, grams: Mapping[str, np.ndarray]) -> Fixed:
    """The same with other text grams."""
    return replace(fixed, text=replace(fixed.text, grams=grams))


def worst(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """The greatest relative error (Frobenius) of any module's matrix."""
    return max(float((found[n] - wanted[n]).norm() / wanted[n].norm()) for n in wanted)


def wide_sketch() -> dict[str, Any]:
    """Seconds per thousand keys and for the factor, and memory, at a d_in of 16,384."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    keys = torch.randn(WIDE_KEYS, WIDE, generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    sketch = gram_sum(WIDE, WIDE_RANK, torch.device("cpu"))
    ready = time.perf_counter()
    sketch.add(keys)
    added = time.perf_counter()
    arrays = sketch.arrays("m", len(keys))
    result = {
        "d_in": WIDE,
        "rank": WIDE_RANK,
        "seconds_to_begin": ready - start,
        "seconds_per_thousand_keys": 1000 * (added - ready) / len(keys),
        "seconds_for_the_factor": time.perf_counter() - added,
        "bytes": sum(a.nbytes for a in arrays.values()),
        "whole_bytes": 8 * WIDE**2,
        "peak_gib_above_start": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20,
    }
    print(result, flush=True)
    return result


if __name__ == "__main__":
    main()
