"""The forgetting report of three lives of trex-gpt2-mini, and what asking after each step adds to editing.

20 batches of 50 facts, each arm a store that `lifelong-edit report` can read afterwards: MALMEN as published, the batch
step alone, and with reconsolidation. Facts and settings are those of `bench_lifelong`. Asked is what `stream` asks by
default. A store that is there already is kept, unless `--again`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import common
from benchmarks.bench_streams import ARMS, PUBLISHED_MODULES, make_stream, trained
from benchmarks.data import trex_facts, trex_model, wikitext
from benchmarks.validation import CHOSEN
from lifelong_edit import Settings, Timeline
from lifelong_edit.eval.reports.sampling import Sampler
from lifelong_edit.facts import Fact, preserved_prompts_of, read_facts
from lifelong_edit.models import load_model
from lifelong_edit.policies import FixedSize, reconsolidation_policy, sample_size
from lifelong_edit.scheduler import BatchEvent, Scheduler

WORK = common.REPOSITORY / ".work" / "report"
POLICIES = {"published": "never", "batch-step": "never", "geometric": "geometric"}


@dataclass(frozen=True)
class Ground:
    """What the arms share."""

    folder: Path
    train: list[Fact]
    text: str
    options: argparse.Namespace


def begin(ground: Ground, name: str, store: Path) -> Timeline:
    """A new store for an arm; the published one gets a network, trained where there is none yet."""
    settings, network = Settings().replace(**CHOSEN), None
    if name == "published":
        arm, options = ARMS["published"], ground.options
        # It breaks the model, and that is to be seen: no gate.
        settings = arm.settings.replace(modules=PUBLISHED_MODULES, gate_perplexity=1e9)
        network = options.networks / "published"
        loaded = load_model(str(ground.folder), modules=PUBLISHED_MODULES)
        trained(arm, loaded, ground.train, ground.text, options.networks, options.minutes)
    return Timeline.create(
        store,
        model=str(ground.folder),
        settings=settings,
        hypernetwork=network,
        preserve=[probe for fact in ground.train for probe in preserved_prompts_of(fact)],
        text=[ground.text],
    )


def live(timeline: Timeline, name: str, records: Path, size: int) -> dict[str, Any]:
    """One life, and the processor seconds of editing and of asking."""
    sampler = Sampler(timeline, sample_size(size))
    scheduler = Scheduler(
        timeline,
        batching=FixedSize(size),
        reconsolidation=reconsolidation_policy(POLICIES[name]),
        measure=lambda _, step: sampler(step),
    )
    began = time.process_time()
    for event in scheduler.run(read_facts([str(records)])):
        kind = "batch" if isinstance(event, BatchEvent) else "reconsolidation"
        print(f"{name}, step {event.step}, {kind}: {time.process_time() - began:.0f} s", flush=True)
    spent = time.process_time() - began
    asked = sum(found.seconds for found in timeline.measurements())
    return {"editing": spent - asked, "asking": asked, "share": asked / (spent - asked), "steps": timeline.head}


def report(stores: Sequence[Path], page: Path) -> dict[str, Any]:
    """The page of all of them side by side: how long it takes from a cold start, and how large it is."""
    command = [sys.executable, "-m", "lifelong_edit", "report", *map(str, stores), "-o", str(page)]
    began = time.perf_counter()
    subprocess.run(command, check=True)
    return {"seconds": time.perf_counter() - began, "bytes": page.stat().st_size}


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="*", default=list(POLICIES), choices=POLICIES)
    parser.add_argument("--networks", type=Path, default=common.REPOSITORY / ".work" / "networks")
    parser.add_argument("--minutes", type=float, default=16, help="processor minutes for the published arm's network")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--size", type=int, default=50)
    parser.add_argument("--again", action="store_true", help="replace stores that are there")
    options = parser.parse_args()
    ground = Ground(trex_model(), trex_facts("train"), wikitext("valid"), options)
    stream = make_stream(trex_facts("stream"), options.batches * options.size, options.seed)
    WORK.mkdir(parents=True, exist_ok=True)
    records = WORK / "facts.jsonl"
    records.write_text("".join(f"{json.dumps(msgspec.to_builtins(fact))}\n" for fact in stream.facts), encoding="utf-8")
    told = WORK / "lives.json"
    lives: dict[str, Any] = json.loads(told.read_text()) if told.is_file() and not options.again else {}
    for name in options.arms:
        store = WORK / name
        if name in lives and store.is_dir():
            continue
        shutil.rmtree(store, ignore_errors=True)
        with begin(ground, name, store) as timeline:
            lives[name] = live(timeline, name, records, options.size)
        told.write_text(json.dumps(lives))
    page = report([WORK / name for name in options.arms], WORK / "report.html")
    common.write("report", {"seed": options.seed, "lives": lives, "page": page})
    for name, found in lives.items():
        print(f"{name:12} asking adds {found['share']:.1%} to {found['editing']:.0f} s of editing")
    print(f"page: {page['bytes'] / 2**20:.2f} MiB, {page['seconds']:.1f} s")


if __name__ == "__main__":
    main()
