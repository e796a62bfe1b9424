"""A step of the published solve against what the published procedure does for it, on GPT-2-small's shape.

64 facts, the upper six output matrices (3,072 × 768), random weights: for time only. `learn` with `ask` published, by
an untrained network of the published form and by the gradient rule, is measured against floors taken in the same run:
bare forward and backward passes over its rows (`bare.py`), the six primal solves alone by a float64 Cholesky factor,
and the published procedure (`published.py`) with its normal equations in float32 and in float64, whose shifts have to
be those of the step. The step is measured as a store takes it, with the conflict keys that its conflict check has found
before, and once more with those to be found. Times are processor seconds of one thread, medians of interleaved
repetitions.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from torch import Tensor

from benchmarks import common, gpt2_shape
from benchmarks.bare import Kind, bare_pass
from benchmarks.bench_commit import BATCH, cost
from benchmarks.published import Rule, gradient_rule, network_rule, published_step
from lifelong_edit import Settings
from lifelong_edit.bench import Bench, State, prepare
from lifelong_edit.editors.contract import Change, Lesson
from lifelong_edit.editors.gradient.rule import make
from lifelong_edit.editors.malmen.rule import with_networks
from lifelong_edit.editors.ridge.editor import RidgeEditor
from lifelong_edit.editors.ridge.targets import Seen
from lifelong_edit.facts import Fact
from lifelong_edit.models import LoadedModel, load_model
from lifelong_edit.stores import materialise
from lifelong_edit.tracing.rows import Row, fact_rows
from lifelong_edit.tracing.trace import trace
from lifelong_edit.training.episodes import TrainSettings, calibrate, new_networks

SETTINGS = Settings(ask="published", phrasings=0, preserved=0, rehearse=0)
GOAL = 0.4
"""Of the published procedure's processor seconds, its normal equations in float64 as ours."""
CLOSE = 1e-4


STEP, FINDING = "step", "step, conflict keys found in it"


def editors(
    loaded: LoadedModel, facts: list[Fact], text_tokens: int, text: list[str]
) -> dict[str, tuple[RidgeEditor, Rule]]:
    """Each rule at work, and the same rule in plain words; the network is calibrated on the facts, not trained."""
    settings = SETTINGS.replace(text_tokens=text_tokens)
    fixed = prepare(loaded, settings, text=text)
    networks = new_networks(loaded, "published", TrainSettings())
    bench = Bench(loaded, settings.replace(editor="malmen"), fixed)
    calibrate(bench, networks, facts)
    networks.requires_grad_(False)
    rule = gradient_rule(1.0, settings.kappa, settings.trust)
    return {
        "malmen": (with_networks(bench, networks), network_rule(networks)),
        "gradient": (make(Bench(loaded, settings.replace(eta=1.0), fixed)), rule),
    }


def solves(editor: RidgeEditor, rows: list[Row]) -> Callable[[], None]:
    """The primal systems of the step, each solved from its keys and value differences by a float64 Cholesky factor."""
    traced = trace(editor.bench.loaded, rows, editor.settings.micro_batch)
    asker = editor.targets.ready(Seen(traced.keys, traced.gradients), {})
    asked = {n: asker.ask(n, traced.keys[n], traced.gradients[n]) for n in editor.bench.names}

    def run() -> None:
        for name in editor.bench.names:
            keys = traced.keys[name].double()
            system = keys.T @ keys
            system.diagonal().add_(editor.ridge(name))
            torch.cholesky_solve(keys.T @ asked[name].double(), torch.linalg.cholesky(system))

    return run


def apart(change: Change, wanted: Mapping[str, Tensor]) -> float:
    """The greatest relative difference of a module's shift."""
    shift = change.shift or {}
    return max(
        float(np.linalg.norm(materialise(shift[n]) - s.numpy()) / np.linalg.norm(s.numpy())) for n, s in wanted.items()
    )


def measure(editor: RidgeEditor, rule: Rule, facts: list[Fact], repeats: int) -> dict[str, Any]:
    """Processor seconds of a step and of its floors, their ratios, and how far the shifts are apart."""
    loaded, s = editor.bench.loaded, editor.settings
    rows = fact_rows(loaded, facts, s.phrasings)
    checked = Lesson(facts, conflict=editor.bench.conflict_of(facts))
    steps: list[Change] = []
    found: dict[str, dict[str, Tensor]] = {}
    todo: dict[str, Callable[[], object]] = {
        STEP: lambda: steps.append(editor.learn(State(), checked)),
        FINDING: lambda: editor.learn(State(), Lesson(facts)),
        "primal solves": solves(editor, rows),
        **{f"bare pass, {k}": partial(bare_pass, loaded, rows, s.micro_batch, k) for k in get_args(Kind)[:2]},
    }

    def procedure(name: str, dtype: torch.dtype) -> None:
        found[name] = published_step(loaded, rows, rule, editor.ridge, dtype)

    for name, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        todo[f"published procedure, {name}"] = partial(procedure, f"published procedure, {name}", dtype)
    seconds: dict[str, list[float]] = {name: [] for name in todo}
    for _ in range(repeats):
        for name, what in todo.items():
            seconds[name].append(cost(what).cpu)
    times = {name: common.median(each) for name, each in seconds.items()}
    phases = [cast(dict[str, float], step.report["seconds"]) for step in steps]
    return {
        "rows": len(rows),
        "tokens": sum(len(row.encoded.ids) for row in rows),
        "positions": sum(row.positions for row in rows),
        "cpu_seconds": times,
        "phase_wall_seconds": {name: common.median([each[name] for each in phases]) for name in phases[0]},
        "step_relative_to": relative(times, STEP),
        "finding_conflict_keys_too_relative_to": relative(times, FINDING),
        "shift_differs_by": {name: apart(steps[-1], shift) for name, shift in found.items()},
    }


def relative(times: Mapping[str, float], step: str) -> dict[str, float]:
    """A step's time relative to each floor's."""
    return {name: times[step] / other for name, other in times.items() if name not in (STEP, FINDING)}


def run(facts: list[Fact], loaded: LoadedModel, text: list[str], text_tokens: int, repeats: int) -> dict[str, Any]:
    """Both rules. Raises SystemExit where a shift is not that of the published procedure."""
    started = time.monotonic()
    results = {}
    for name, (editor, rule) in editors(loaded, facts, text_tokens, text).items():
        results[name] = found = measure(editor, rule, facts, repeats)
        if found["shift_differs_by"]["published procedure, float64"] > CLOSE:
            raise SystemExit(f"the shifts of {name} differ by {found['shift_differs_by']}, expected {CLOSE} at most")
    return {"goal": GOAL, "repeats": repeats, "minutes": (time.monotonic() - started) / 60, **results}


def main() -> None:
    """Measure, print, leave results/published.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--facts", type=int, default=BATCH)
    parser.add_argument("--text-tokens", type=int, default=2_000, help="tokens of text, which the solve does not use")
    options = parser.parse_args()
    torch.set_num_threads(1)
    facts, text = gpt2_shape.counterfact(options.facts), gpt2_shape.text()
    with tempfile.TemporaryDirectory() as name:
        loaded = load_model(str(gpt2_shape.build(Path(name) / "model")))
        results = run(facts, loaded, text, options.text_tokens, options.repeats)
    common.write("published", results)
    for rule in ("malmen", "gradient"):
        for other, ratio in results[rule]["step_relative_to"].items():
            print(f"{rule}: a step took {ratio:.2f} × {other}")


if __name__ == "__main__":
    main()
