"""Training the networks of MEND, RLEdit and SERAC: resumable, with the gradient of numbers, known by its rule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from lifelong_edit.bench import Bench, Fixed, State
from lifelong_edit.editors.malmen.network import read_checkpoint
from lifelong_edit.editors.registry import rule_of
from lifelong_edit.facts import Fact
from lifelong_edit.models import LoadedModel
from lifelong_edit.timeline.defaults import default_editor, solve_of
from lifelong_edit.training.episodes import Episode, TrainSettings, taught, weight_gradients
from lifelong_edit.training.further import MendTrainer, calibrate_mend
from lifelong_edit.training.run import Run
from tests.mathematics.conftest import make_fact
from tests.mathematics.test_mend import SETTINGS, networks_for

SMALL = TrainSettings(
    rank=4, batch_size=3, batches=2, probes=4, validation_share=0.3, validation_facts=4, validate_every=100
)
FACTS = [make_fact(i) for i in range(24)]
SHORT = [Fact(subject=f"P{i}", prompt=f"P{i} is in", target="Peru", rephrases=(f"P{i} lies in",)) for i in range(24)]
"""Facts that have room before a question in a context of 64 tokens."""
Start = Callable[..., Run]


@pytest.fixture
def start(loaded: LoadedModel, sentences: list[str], tmp_path: Path) -> Start:
    """`start(rule, name)`: a run on the tiny GPT-2 in a folder of that name."""

    def make(rule: str, name: str, **changes: Any) -> Run:
        kind = rule_of(rule).settings
        small = {"text_tokens": 1000, "micro_batch": 8, "preserved": 4, "passes": 1, "phrasings": 1}
        settings = kind(editor=rule, **({n: v for n, v in small.items() if n in kind.__struct_fields__} | changes))
        text = [" ".join(sentences * 20)]
        facts = SHORT if rule_of(rule).by_facts else FACTS
        return Run(loaded, facts, text, tmp_path / name, settings, SMALL, say=lambda _: None)

    return make


@pytest.mark.parametrize("rule", ["mend", "rledit", "serac"])
def test_a_run_that_was_stopped_goes_on_to_the_same_network(start: Start, tmp_path: Path, rule: str) -> None:
    start(rule, "whole").go(5, steps=4)
    start(rule, "halves").go(5, steps=2)
    start(rule, "halves").go(5, steps=4)
    whole, halves = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "halves"))
    for name, tensor in whole.items():
        if not name.startswith("best"):  # the stopped run validated once more, in the middle
            np.testing.assert_array_equal(tensor, halves[name], err_msg=name)
    config = read_checkpoint(tmp_path / "whole").config
    assert (config.form, config.provenance["steps"]) == (rule, 4)
    assert default_editor(tmp_path / "whole", "x") == rule
    assert solve_of(tmp_path / "whole")["modules"] == config.entries


def test_published_rledit_takes_one_step(start: Start) -> None:
    """Every parameter moves by Adam's rate at most; what is learned is the normaliser, of all the episode's rows."""
    run = start("rledit", "one", training="published")
    before = {n: p.detach().clone() for n, p in run.networks.named_parameters()}
    counted = {n: float(b) for n, b in run.networks.named_buffers() if n.endswith("count")}
    run.go(5, steps=50)
    assert run.trainer.steps == 1 == len(run.trainer.history)
    learned = run.trainer.networks.state_dict()
    moved = [float((learned[n] - p).abs().max()) for n, p in before.items()]
    assert 0 < max(moved) < 1.01 * SMALL.scalar_rate
    assert all(float(learned[n]) > count for n, count in counted.items())


def test_the_gradient_of_mends_step_is_that_of_numbers(loaded: LoadedModel, fixed: Fixed) -> None:
    """d loss / d factor, by the trainer and by moving the factor a little either way."""
    bench = Bench(loaded, SETTINGS, fixed)
    networks = networks_for(loaded, size=0.05)
    calibrate_mend(bench, networks, FACTS[:6])
    batch, episode = [taught(f) for f in FACTS[:3]], Episode([], [], frozenset())
    trainer = MendTrainer(bench, networks, SMALL)
    found: dict[str, torch.Tensor] = {}
    trainer.descend = lambda loss: found.update(  # type: ignore[method-assign]
        {n: p.grad.clone() for n, p in networks.named_parameters() if p.grad is not None}
    )
    running = {n: b.clone() for n, b in networks.named_buffers()}
    trainer.run_batch(State(), batch, [], episode)
    # The rows are taken once more by each call: begin each where the first one began.
    judges = trainer.judges(batch, episode, 0)

    def loss() -> float:
        for name, buffer in networks.named_buffers():
            buffer.copy_(running[name])
        state = State()
        trainer.run_batch(state, batch, [], episode)
        with loaded.at(state.shifts):
            return weight_gradients(loaded, judges, 8)[0]

    wanted = dict(found)
    name = next(n for n in wanted if n.endswith("factor"))
    parameter = dict(networks.named_parameters())[name]
    for layer in range(len(parameter)):
        losses = []
        for change in (1e-2, -2e-2):
            with torch.no_grad():
                parameter[layer] += change
            losses.append(loss())
        with torch.no_grad():
            parameter[layer] += 1e-2
        slope = (losses[0] - losses[1]) / 2e-2
        assert slope == pytest.approx(float(wanted[name][layer]), rel=0.05, abs=2e-3)
    assert float(wanted[name].abs().max()) > 2e-2, "the check could not fail"
