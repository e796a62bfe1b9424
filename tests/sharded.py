"""What a store goes through in one process, and in several of which each holds a shard of the model."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lifelong_edit.facts import Probe
from lifelong_edit.world import ALONE, World
from tests.cli.conftest import parts_of
from tests.contracts.editing import Row, batch, lenient, placed

BEGUN = """
import sys
sys.path.insert(0, {root!r})
from tests.sharded import take_part
take_part({told!r})
"""
"""What runs in each of the processes. told: what `take_part` takes."""


def take_part(told: str) -> None:
    """Walk through each of the stores that are told, as JSON, together with the other processes, and end.

    Each process writes what it found into a file of its own, by its number.
    """
    import torch

    from lifelong_edit.world.starting import join

    torch.set_num_threads(1)
    given, world = json.loads(told), join()
    found = [walk(Path(one.pop("store")), **one, device="sharded", world=world) for one in given["walks"]]
    found += [look(*one, "sharded", world) for one in given["looks"]]
    Path(given["to"], f"{world.rank}.json").write_text(json.dumps(found))
    world.close()
    os._exit(0)


def walk(
    store: Path, model: str, rule: str, changes: dict[str, Any], text: str, device: str, world: World = ALONE
) -> dict[str, Any]:
    """A life of a store, in which everything happens that asks the model; what came of it."""
    from lifelong_edit.eval.reports.evaluation import evaluate
    from lifelong_edit.timeline import Timeline

    row = Row(rule)
    settings = row.settings(device=device, **{name: tuple(v) if type(v) is list else v for name, v in changes.items()})
    preserve = [Probe(prompt=f"The river of {name} is", subject=name) for name in ("Rome", "Paris", "Vienna")]
    given: dict[str, Any] = {"settings": settings, "preserve": preserve, "text": [text], "world": world}
    with Timeline.create(store, model=model, **given) as timeline:
        for number in (0, 1):
            timeline.apply(placed(number), gate=lenient)
        if row.rule.relearns:
            timeline.reconsolidate(guard=False)
            timeline.retract([batch(0)[1]])
        timeline.rollback(1)
        timeline.apply(placed(2), gate=lenient)
        view = timeline.at("head")
        answers = [view.ask(fact.prompt) for fact in batch(0)]
        steps = [(step.kind, step.weights_digest, parts_of(step)) for step in timeline.log()]
        measured = evaluate(timeline).to_json()
        return {"steps": steps, "answers": answers, "eval": measured, **held(timeline.bench().loaded.model)}


def look(source: str, modules: Sequence[str] | None, device: str, world: World = ALONE) -> dict[str, Any]:
    """A model, and what a pass through it there and back leaves, as digests."""
    from lifelong_edit.models import load_model
    from lifelong_edit.stores import tensors_digest
    from lifelong_edit.tasks import task_of
    from lifelong_edit.tracing.rows import Row as Traced
    from lifelong_edit.tracing.trace import trace

    loaded = load_model(source, modules=modules, device=device, world=world)
    task = task_of(loaded)
    labels = loaded.labels
    rows = [
        Traced(task.encode(loaded, fact.prompt, labels[i] if labels else fact.target), "new")
        for i, fact in enumerate(batch(0))
    ]
    traced = trace(loaded, rows, 2)
    tensors = {f"keys/{n}": t.numpy() for n, t in traced.keys.items()}
    tensors |= {f"gradients/{n}": t.numpy() for n, t in traced.gradients.items()}
    return {"fingerprint": loaded.fingerprint, "traced": tensors_digest(tensors), **held(loaded.model)}


def held(model: Any) -> dict[str, int]:
    """Bytes of the parameters of a model that this process holds, and of all that the model has."""
    here = whole = 0
    for parameter in model.parameters():
        local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        here += local.untyped_storage().nbytes()
        whole += parameter.numel() * parameter.element_size()
    return {"here": here, "whole": whole}
