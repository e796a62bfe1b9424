"""The time of a committed batch of 64 facts, from reading to fsync, and the bytes that it takes on the disk.

The step is measured against its own rows and passes as bare forward and backward passes in the same run
(`bare.py`), on GPT-2-small's shape. Times are given as wall seconds and as processor seconds of the process:
on a machine with neighbours the second is the one to trust, since a thread that waits does not count.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks import common, gpt2_shape
from benchmarks.bare import Kind, bare_pass
from benchmarks.data import trex_facts, trex_file, trex_model
from lifelong_edit import Settings, Timeline
from lifelong_edit.editors.contract import Lesson
from lifelong_edit.editors.ridge.editor import RidgeEditor
from lifelong_edit.editors.ridge.rows import select_rows
from lifelong_edit.facts import Fact, read_facts
from lifelong_edit.judging.gate import base_perplexity
from lifelong_edit.tracing.rows import Row

BATCH = 64


@dataclass
class Cost:
    """What something took: wall seconds and processor seconds."""

    wall: float
    cpu: float

    def over(self, other: Cost, times: int) -> dict[str, float]:
        """This relative to `times` of the other."""
        return {"wall": self.wall / (times * other.wall), "cpu": self.cpu / (times * other.cpu)}


def cost(what: Callable[[], object]) -> Cost:
    """One call, on both clocks."""
    wall, cpu = time.perf_counter(), time.process_time()
    what()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


def own_rows(timeline: Timeline, facts: list[Fact]) -> list[Row]:
    """The rows that `apply` will solve over for a batch at the head."""
    state, bench = timeline._solve().state(), timeline.bench()
    return select_rows(bench, RidgeEditor.options_of(bench), state, Lesson(facts), sorted(state.live))


def measure_step(timeline: Timeline, folder: Path, facts: list[Fact], kinds: Sequence[Kind]) -> dict[str, Any]:
    """One committed batch, and then each kind of bare pass once over the rows that it had."""
    path = gpt2_shape.write_facts(folder / "batch.jsonl", facts)
    loaded, settings = timeline.bench().loaded, timeline.settings
    rows = own_rows(timeline, facts)
    records: list[Any] = []
    step = cost(lambda: records.append(timeline.apply(list(read_facts([str(path)])))))
    bare = {kind: cost(lambda k=kind: bare_pass(loaded, rows, settings.micro_batch, k)) for kind in kinds}
    report = records[0].report
    passes = report["editor"]["passes"]  # further ones among them, if the batch had not taken
    phases = dict(report["editor"]["seconds"])
    phases["conflicts and gate"] = report["seconds"] - sum(phases.values())
    phases["reading and commit"] = step.wall - report["seconds"]
    return {
        "rows": report["editor"]["rows"],
        "tokens": sum(len(row.encoded.ids) for row in rows),
        "positions": report["editor"]["positions"],
        "passes": passes,
        "step_seconds": vars(step),
        "phase_seconds": phases,
        "bare_pass_seconds": {kind: vars(found) for kind, found in bare.items()},
        "relative_to_bare": {kind: step.over(found, passes) for kind, found in bare.items()},
    }


def blob_bytes(timeline: Timeline) -> dict[str, float]:
    """Bytes per 1,000 facts by kind of payload, from the log of the store's edit steps."""
    totals: dict[str, float] = {}
    facts = 0
    for record in timeline.log():
        if record.kind != "edit":
            continue
        facts += len(record.added)
        for part in ("shift", "keys", "snapshot", "editor_state"):
            digest = getattr(record, part)
            totals[part] = totals.get(part, 0) + (len(timeline._log.blob(digest)) if digest else 0)
    whole = sum(4 * d_in * d_out for d_in, d_out in timeline.config.model.modules.values())
    totals["snapshot"] = whole * facts / BATCH / timeline.settings.snapshot_every
    return {part: 1000 * size / facts for part, size in totals.items()} | {"state_whole": whole}


def time_on_gpt2_shape(repeats: int, text_tokens: int) -> dict[str, Any]:
    """Batches of CounterFact on GPT-2-small's shape; from the second on, earlier facts are rehearsed with them."""
    facts = gpt2_shape.counterfact(BATCH * repeats)
    everything: tuple[Kind, ...] = get_args(Kind)
    steps: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = gpt2_shape.build(folder / "model")
        # Random weights lose perplexity at once: the bound of the gate is opened, its work is done all the same.
        settings = Settings(text_tokens=text_tokens, gate_perplexity=1e30)
        preserve, text = gpt2_shape.preserved(2 * settings.preserved), gpt2_shape.text()
        with Timeline.create(
            folder / "store", model=str(model), settings=settings, preserve=preserve, text=text
        ) as timeline:
            base_perplexity(timeline.bench())  # once per process, and no part of a batch
            for start in range(0, len(facts), BATCH):
                kinds = everything if start == 0 else everything[:2]
                steps.append(measure_step(timeline, folder, facts[start : start + BATCH], kinds))
                print(json.dumps(common.rounded(steps[-1]), indent=1), flush=True)
            size = blob_bytes(timeline)
    return {"steps": steps, "median_relative": medians(steps, everything), "bytes_per_1000_facts": size}


def medians(steps: Sequence[dict[str, Any]], kinds: Sequence[str]) -> dict[str, dict[str, float]]:
    """Per kind of bare pass the median over the steps of time relative to it, on both clocks."""
    found = {}
    for kind in kinds:
        ratios = [step["relative_to_bare"][kind] for step in steps if kind in step["relative_to_bare"]]
        found[kind] = {clock: common.median([ratio[clock] for ratio in ratios]) for clock in ("wall", "cpu")}
    return found


def bytes_on_trex(count: int) -> dict[str, Any]:
    """1,000 facts in batches of 64 on trex-gpt2-mini: what the whole store takes on the disk."""
    facts, preserve = trex_facts("stream")[:count], list(gpt2_shape.probes(trex_file("train")))
    with tempfile.TemporaryDirectory() as name:
        store = Path(name) / "store"
        with Timeline.create(store, model=str(trex_model()), preserve=preserve, text=gpt2_shape.text()) as timeline:
            empty = common.folder_bytes(store)
            for start in range(0, len(facts), BATCH):
                timeline.apply(facts[start : start + BATCH])
            live = len(timeline.facts())
            size = blob_bytes(timeline)
        full = common.folder_bytes(store)
    return {
        "facts": live,
        "store_after_init": empty,
        "store_after_stream": full,
        "growth_per_1000_facts": 1000 * (full - empty) / live,
        "bytes_per_1000_facts": size,
    }


def main() -> None:
    """Both measurements; figures to results/commit.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="committed batches that are measured")
    parser.add_argument("--text-tokens", type=int, default=8_000, help="tokens of text behind C₀ on GPT-2's shape")
    parser.add_argument("--trex-facts", type=int, default=1000, help="facts of the stream on trex-gpt2-mini")
    options = parser.parse_args()
    torch.manual_seed(0)
    results = {
        "gpt2_small_shape": time_on_gpt2_shape(options.repeats, options.text_tokens),
        "trex_gpt2_mini": bytes_on_trex(options.trex_facts),
    }
    common.write("commit", results)
    for kind, ratio in results["gpt2_small_shape"]["median_relative"].items():
        print(f"a step took {ratio['cpu']:.2f} × its bare passes ({kind}), by the wall clock {ratio['wall']:.2f} ×")


if __name__ == "__main__":
    main()
