"""`plan` against what came of it: for a model and so many facts, what was told beside what init, batches and a
reconsolidation then took. Processor seconds of one thread on both sides, so that a busy machine does not count.

Without arguments on atlas, with its own network. `--model` and `--editor` for others. With `--training` a training run
in its place: a step, a validation, the memory and the files of it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import write
from lifelong_edit import Timeline
from lifelong_edit.cache import bypassed
from lifelong_edit.editors.registry import rule_of
from lifelong_edit.models import load_model
from lifelong_edit.planning.machine import Took, Watch
from lifelong_edit.planning.measure import _fixed
from lifelong_edit.planning.plan import Cost, make_plan
from lifelong_edit.planning.samples import sample_facts
from lifelong_edit.planning.training import training_facts
from lifelong_edit.timeline.defaults import default_editor, default_preserved, default_text, start_of
from lifelong_edit.training.episodes import TrainSettings
from lifelong_edit.training.run import CHECKPOINT, NETWORK, Run

MINUTES = 10.0
TRAINING_FACTS = 900
"""Facts of the data: enough for as many locality prompts as a step asks."""


def main() -> None:
    """Measures, prints and writes `results/plan.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="atlas")
    parser.add_argument("--editor")
    parser.add_argument("--facts", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=25)
    parser.add_argument("--preserved", type=int, default=300, help="at the most, of those that the model has")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--name", default="plan")
    parser.add_argument("--training", action="store_true")
    parser.add_argument("--truth", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    settings, network = start_of(given.model, None, None)
    if given.editor or given.set:
        from lifelong_edit.cli.common import parse_settings

        editor = given.editor or default_editor(network, given.model)
        settings = parse_settings(rule_of(editor).settings, "--set", given.set, editor=editor)
        settings, network = start_of(given.model, settings, None)
    preserve = default_preserved(given.model, settings.editor)[: given.preserved]
    if "reconsolidation_gain" in settings.__struct_fields__:
        settings = settings.replace(reconsolidation_gain=0.0)  # all passes, which is what is told
    options = {"preserve": preserve, "text": default_text(), "hypernetwork": network}
    if given.truth:
        with bypassed():
            print(json.dumps((trained if given.training else measured)(given, settings, options)))
        return
    began = time.process_time()
    minutes = {"minutes": MINUTES} if given.training else {}
    told = make_plan(
        given.model, settings, given.facts, given.batch_size, clock=time.process_time, **options, **minutes
    )
    seconds = time.process_time() - began
    if given.training:
        whole = told.work["training"]
        told.work["validation"] = Cost(seconds=whole.seconds - 60 * MINUTES, memory=whole.memory, disk=0)
    was = json.loads(subprocess.check_output([sys.executable, "-m", "benchmarks.bench_plan", *sys.argv[1:], "--truth"]))
    rows = []
    for name, cost in told.work.items():
        for what in ("seconds", "memory", "disk"):
            if what in was.get(name, {}):
                planned, found = getattr(cost, what), was[name][what]
                rows.append({"work": name, "what": what, "told": planned, "measured": found, "ratio": planned / found})
                print(json.dumps(rows[-1]), flush=True)
    figures = {"model": given.model, "editor": settings.editor, "facts": given.facts, "batch": given.batch_size}
    write(given.name, {**figures, "calibration_seconds": seconds, "passes": was.get("passes"), "rows": rows})


def measured(given: argparse.Namespace, settings: Any, options: dict[str, Any]) -> dict[str, Any]:
    """What it took in truth."""
    watch, found = Watch(torch.device("cpu"), time.process_time), dict[str, Any]()
    with tempfile.TemporaryDirectory() as place:
        made: list[Timeline] = []
        store, loose = Path(place) / "store", settings.replace(gate_perplexity=1e30, gate_noise=0.0)
        took = watch.over(lambda: made.append(Timeline.create(store, model=given.model, settings=loose, **options)))
        with made[0] as timeline:
            found["init"] = as_figures(took, _fixed(timeline)[0])
            batches, passes = list[Took](), list[int]()
            for first in range(0, given.facts, given.batch_size):
                facts = sample_facts(min(given.batch_size, given.facts - first), first)
                batches.append(watch.over(lambda facts=facts: timeline.apply(facts)))
                step = timeline.show(timeline.head)
                passes.append(step.report["editor"].get("passes", 1))
            found["batch"] = {"seconds": batches[-1].seconds, "memory": max(took.peak for took in batches)}
            found["batches"] = {
                "seconds": sum(took.seconds for took in batches),
                "disk": sum(timeline._log.blob_sizes().values()) - _fixed(timeline)[0],
            }
            took = watch.over(lambda: timeline.reconsolidate(guard=False))
            found["reconsolidation"] = as_figures(took)
            found["passes"] = {"batches": passes, "again": timeline.show(timeline.head).report["editor"].get("passes")}
    return found


def trained(given: argparse.Namespace, settings: Any, options: dict[str, Any]) -> dict[str, Any]:
    """What training took in truth: two episodes, of which the second counts, and a validation."""
    watch, train = Watch(torch.device("cpu"), time.process_time), TrainSettings(batches=2)
    loaded = load_model(given.model, modules=settings.modules or None, places=rule_of(settings.editor).places)
    with tempfile.TemporaryDirectory() as place:
        out = Path(place)
        run = Run(loaded, training_facts(TRAINING_FACTS), options["text"], out, settings, train, lambda _: None)
        run.trainer.run_episode(run.facts)
        before = run.trainer.steps
        step = watch.over(lambda: run.trainer.run_episode(run.facts))
        validation = watch.over(run._validate)
        run._save()
        run._finish()
        disk = sum((out / name).stat().st_size for name in (CHECKPOINT, NETWORK))
    # a validation is told of as many facts as the setting says
    seconds = validation.seconds * train.validation_facts / len(run.held.taught)
    return {
        "training step": {"seconds": step.seconds / (run.trainer.steps - before), "memory": step.peak},
        "validation": {"seconds": seconds},
        "training": {"disk": disk},
    }


def as_figures(took: Took, disk: int | None = None) -> dict[str, float]:
    """Seconds and bytes."""
    return {"seconds": took.seconds, "memory": took.peak} | ({} if disk is None else {"disk": disk})


if __name__ == "__main__":
    main()
