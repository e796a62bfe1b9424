"""Facts taken back out of 1,000: to what, how far from a life without them, and how long it takes.

A store edits a stream batch by batch, on trex-gpt2-mini, and retracts some of its facts in one step. Another store is
only ever given those that remain, in the order in which they came: its weights after the last batch are those of a real
run without the retracted facts, and after a canonical reconsolidation they must be, byte for byte, those of the
retraction; the benchmark fails where they are not. Compared are ΔW and the answers, greedy and as long as the target.
Afterwards the first store goes back to where it was, for the next count.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import common, gpt2_shape
from benchmarks.bench_streams import make_stream
from benchmarks.data import trex_facts, trex_file, trex_model, wikitext
from benchmarks.validation import CHOSEN
from lifelong_edit import Settings, Timeline
from lifelong_edit.cli.common import parse_settings
from lifelong_edit.facts import Fact
from lifelong_edit.models import encode, generate_greedy
from lifelong_edit.tracing.rows import draw

SAMPLE = 300
"""Remaining facts that are asked, and neighbours of the retracted ones."""
Weights = Mapping[str, np.ndarray]
Questions = dict[str, list[tuple[str, str]]]
"""Prompts and the answers to be expected, which fix how long an answer is, by group."""


def timed(what: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What it returns, and what it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = what()
    return found, {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def begin(options: argparse.Namespace, folder: Path) -> Timeline:
    """A new store, with the settings of the other streams."""
    return Timeline.create(
        folder,
        model=str(trex_model()),
        settings=parse_settings(Settings, "--set", options.set, **CHOSEN),
        preserve=list(gpt2_shape.probes(trex_file("train")))[: 200 if options.quick else None],
        text=[wikitext("valid")],
    )


def edit(timeline: Timeline, facts: Sequence[Fact], size: int) -> None:
    """Batch by batch."""
    for start in range(0, len(facts), size):
        timeline.apply(facts[start : start + size])


def questions(facts: Sequence[Fact], retracted: Sequence[Fact], seed: int) -> Questions:
    """What is asked: remaining facts, retracted ones, neighbours of these that nobody edited."""
    about = {fact.subject.casefold() for fact in (*facts, *retracted)}
    near = {
        p.prompt: p.target or "" for f in retracted for p in f.locality if (p.subject or "").casefold() not in about
    }
    pools = {
        "remaining": [(fact.prompt, fact.target) for fact in facts],
        "retracted": [(fact.prompt, fact.target) for fact in retracted],
        "near": sorted(near.items()),
    }
    return {name: [pool[i] for i in draw(len(pool), SAMPLE, name, seed)] for name, pool in pools.items()}


def answers(timeline: Timeline, step: int, asked: Questions) -> dict[str, list[list[int]]]:
    """The model's answers at a step, as token numbers."""
    found = {}
    with timeline.at(step).standing() as loaded:
        for name, pairs in asked.items():
            encoded = [encode(loaded.tokenizer, prompt, target) for prompt, target in pairs]
            lengths = [len(e.answer) for e in encoded]
            found[name] = generate_greedy(loaded, [prompt for prompt, _ in pairs], lengths)
    return found


def same(one: Mapping[str, Sequence[Any]], other: Mapping[str, Sequence[Any]]) -> dict[str, float | None]:
    """Share of equal answers by group; None where nothing was asked."""
    return {
        name: sum(a == b for a, b in zip(found, other[name], strict=True)) / len(found) if found else None
        for name, found in one.items()
    }


def distance(one: Weights, other: Weights) -> dict[str, float]:
    """‖ΔW − ΔW'‖ relative to ‖ΔW'‖ by module."""
    return {n: float(np.linalg.norm(one[n] - w) / np.linalg.norm(w)) for n, w in other.items()}


def compare(options: argparse.Namespace, whole: Timeline, count: int, folder: Path) -> dict[str, Any]:
    """Retract `count` facts drawn by seed, and live without them; the figures of both."""
    step, live = whole.head, whole.facts()
    gone = [live[i] for i in draw(len(live), count, "retract", options.seed)]
    left = [fact for fact in live if fact not in gone]
    record, took = timed(lambda: whole.retract(gone))
    asked = questions(left, gone, options.seed)
    retracted, weights = answers(whole, record.step, asked), whole.weights(record.step)
    before = answers(whole, step, asked)
    base = answers(whole, 0, asked)
    whole.rollback(step)
    with begin(options, folder) as without:
        edit(without, left, options.size)
        last = without.head
        lived, theirs = answers(without, last, asked), without.weights(last)
        solved, again = timed(lambda: without.reconsolidate(guard=False))
    if solved.weights_digest != record.weights_digest:
        raise SystemExit(
            f"retracting {count} facts led to {record.weights_digest}, without them {solved.weights_digest}"
        )
    passes = record.report["editor"]["passes"]
    return {
        "retracted": count,
        "live before": len(live),
        "weights digest": record.weights_digest,
        "seconds": took | {"passes": passes, "cpu per pass": took["cpu"] / passes},
        "canonical seconds without them": again,
        "as base": record.report["as_base"],
        "weights from the run without them": distance(weights, theirs),
        "answers as the run without them": same(retracted, lived),
        "that run as before the retraction": same(lived, before),
        "answers as the base model": same(retracted, base),
        "that run as the base model": same(lived, base),
    }


def told(found: Mapping[str, Any]) -> str:
    """One line."""
    shares = ", ".join(
        f"{name} {share:.3f}" for name, share in found["answers as the run without them"].items() if share is not None
    )
    far, seconds = found["weights from the run without them"].values(), found["seconds"]
    return (
        f"{found['retracted']} of {found['live before']} retracted, to the bit as if they had never come, in "
        f"{seconds['cpu']:.0f} s of a core and {seconds['passes']} passes; answers as of a run without them: {shares}; "
        f"ΔW {min(far):.2f} to {max(far):.2f} of its norm away; as the base model: {found['as base']}"
    )


def main() -> None:
    """All counts; figures to results/retraction.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", nargs="*", type=int, default=[1, 10, 100])
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--size", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the stream and of what is retracted")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="other settings")
    parser.add_argument("--quick", action="store_true", help="3 batches of 10, 200 prompts preserved; writes nothing")
    options = parser.parse_args()
    if options.quick:
        options.batches, options.size, options.counts = 3, 10, [1, 5]
    stream = make_stream(trex_facts("stream"), options.batches * options.size, options.seed).facts
    results: dict[str, Any] = {"asked": vars(options), "counts": []}
    with tempfile.TemporaryDirectory() as name, begin(options, Path(name) / "whole") as whole:
        _, results["seconds of the stream"] = timed(lambda: edit(whole, stream, options.size))
        for count in options.counts:
            found = compare(options, whole, count, Path(name) / f"without-{count}")
            print(told(found), flush=True)
            results["counts"].append(found)
            if not options.quick:
                common.write("retraction", results)


if __name__ == "__main__":
    main()
