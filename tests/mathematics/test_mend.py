"""MEND's shift against its equations in NumPy (arXiv 2110.11309, section 3), and where its training begins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from lifelong_edit.bench import Bench, Fixed, State
from lifelong_edit.editors.contract import Given, Lesson
from lifelong_edit.editors.malmen.network import NetworkConfig, NetworkSet
from lifelong_edit.editors.malmen.rule import pack
from lifelong_edit.editors.mend.rule import MendEditor, with_networks
from lifelong_edit.editors.mend.settings import MendSettings
from lifelong_edit.editors.registry import rule_of
from lifelong_edit.errors import StepRefusedError, UsageError
from lifelong_edit.facts import Fact
from lifelong_edit.models import LoadedModel, encode
from lifelong_edit.stores.tensors import materialise
from lifelong_edit.tracing.rows import fact_rows
from lifelong_edit.training.further import calibrate_mend
from tests.mathematics.conftest import shift_of

SETTINGS = MendSettings(micro_batch=8, text_tokens=3000)
MakeMend = Callable[..., MendEditor]


def networks_for(loaded: LoadedModel, form: Any = "mend", seed: int = 0, size: float = 0.0) -> NetworkSet:
    """Networks of rank 5 in two blocks, the identity, or with random parameters of a size."""
    modules = loaded.modules
    config = NetworkConfig(
        form=form, rank=5, blocks=2, modules=tuple(m.name for m in modules),
        shapes=tuple((m.d_in, m.d_out) for m in modules), positions=tuple(m.positions for m in modules),
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        networks = NetworkSet(config).requires_grad_(False)
        for parameter in networks.parameters():
            parameter.add_(torch.randn(parameter.shape) * size)
    return networks.eval()


@pytest.fixture
def make_mend(loaded: LoadedModel, fixed: Fixed) -> MakeMend:
    """The rule on the tiny GPT-2 with random networks whose normaliser has seen something."""

    def make(size: float = 0.3, **changes: Any) -> MendEditor:
        networks = networks_for(loaded, size=size)
        generator = torch.Generator().manual_seed(1)
        for shape, network in networks.networks.items():
            d_in, d_out = map(int, shape.split("x"))
            seen = torch.randn(9, d_in, generator=generator), torch.randn(9, d_out, generator=generator) * 0.1
            network.running.take(*seen)  # type: ignore[operator, union-attr]
            network.unit.fill_(0.01)  # type: ignore[operator, union-attr]
        return with_networks(Bench(loaded, SETTINGS.replace(**changes), fixed), networks)

    return make


def everywhere(loaded: LoadedModel, facts: list[Fact]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Keys and gradients at all tokens of prompts and answers, one fact at a time, by plain autograd."""
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {m.name: [] for m in loaded.modules}
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def recorder(name: str) -> Any:
        def record(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            output = output if output.requires_grad else output.requires_grad_()
            seen[name] = inputs[0].detach(), output
            return output

        return record

    for fact in facts:
        handles = [loaded.model.get_submodule(n).register_forward_hook(recorder(n)) for n in found]
        e = encode(loaded.tokenizer, fact.prompt, fact.target, fact.subject)
        ids = torch.tensor([e.ids])
        logits = loaded.model(input_ids=ids).logits[0, e.answer_start - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits, ids[0, e.answer_start :])
        slopes = torch.autograd.grad(loss, [seen[n][1] for n in found])
        for handle in handles:
            handle.remove()
        for name, slope in zip(found, slopes, strict=True):
            found[name].append((seen[name][0][0].double().numpy(), slope[0].double().numpy()))
    return {n: (np.concatenate([k for k, _ in p]), np.concatenate([g for _, g in p])) for n, p in found.items()}


def judged(networks: NetworkSet, module: str, keys: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """η Σ k̃ᵀg̃ over rows with a key and a gradient, blocks y + relu(scale ⊙ (yAB + b) + shift), float64."""
    shapes = dict(zip(networks.config.modules, networks.config.shapes, strict=True))
    own = [n for n in networks.config.modules if shapes[n] == shapes[module]]
    t = {n: v.double().numpy() for n, v in networks.state_dict().items()}
    front, layer = f"networks.{keys.shape[1]}x{gradients.shape[1]}.", own.index(module)
    there = (keys != 0).any(1) & (gradients != 0).any(1)
    count = t[front + "running.count"]
    deviation = np.sqrt(t[front + "running.squares"] / (count - 1))
    y = (np.concatenate([keys, gradients], 1)[there] - t[front + "running.mean"]) / deviation
    for block in range(2):
        a, b, bias, scale, shift = (t[f"{front}blocks.{block}.{part}"] for part in ("a", "b", "bias", "scale", "shift"))
        y = y + np.maximum(scale[layer] * (y @ a @ b + bias) + shift[layer], 0)
    step = t[front + "unit"][layer] * t[front + "factor"][layer]
    answer: np.ndarray = step * y[:, : keys.shape[1]].T @ y[:, keys.shape[1] :]
    return answer


def errors(editor: MendEditor, networks: NetworkSet, facts: list[Fact]) -> float:
    """The greatest relative error of a module's shift."""
    found = shift_of(editor.learn(State(), Lesson(facts)))
    pairs = everywhere(editor.bench.loaded, facts)
    apart = []
    for name, (keys, gradients) in pairs.items():
        wanted = judged(networks, name, keys, gradients)
        apart.append(float(np.linalg.norm(materialise(found[name]) - wanted) / np.linalg.norm(wanted)))
    return max(apart)


def test_the_shift_is_the_formula(make_mend: MakeMend, news: list[Fact]) -> None:
    editor = make_mend()
    assert errors(editor, editor.networks, news[:5]) < 1e-4


@pytest.mark.parametrize("broken", ["scale", "shift", "bias", "factor", "unit", "mean"])
def test_every_parameter_matters_to_the_judge(make_mend: MakeMend, news: list[Fact], broken: str) -> None:
    editor, right = make_mend(), make_mend().networks
    for name, tensor in editor.networks.state_dict().items():
        if name.endswith(broken):
            tensor.add_(0.3)
    assert errors(editor, right, news[:3]) > 5e-3


def test_at_the_start_it_is_the_normalised_gradient(make_mend: MakeMend, news: list[Fact]) -> None:
    """η Σ k̂ᵀĝ: the network is the identity, whatever its other parameters are."""
    editor = make_mend(size=0.0)
    found = shift_of(editor.learn(State(), Lesson(news[:4])))
    for name, (keys, gradients) in everywhere(editor.bench.loaded, news[:4]).items():
        one = editor.networks.mend(name)[0].running.normaliser
        rows = np.concatenate([keys, gradients], 1)[(gradients != 0).any(1)]
        normal = (rows - one.mean.numpy()) / one.deviation.numpy()
        wanted = 0.01 * normal[:, : keys.shape[1]].T @ normal[:, keys.shape[1] :]
        np.testing.assert_allclose(materialise(found[name]), wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize(("begins", "falls"), [("descent", True), ("published", False)])
def test_where_training_begins(loaded: LoadedModel, fixed: Fixed, news: list[Fact], begins: str, falls: bool) -> None:
    """Down the loss of the facts, or as published up."""
    bench = Bench(loaded, SETTINGS.replace(begins=begins), fixed)
    networks = networks_for(loaded)
    calibrate_mend(bench, networks, news)
    editor = with_networks(bench, networks)
    rows = fact_rows(loaded, news, 0)
    none = {m.name: np.zeros((m.d_in, m.d_out), np.float32) for m in loaded.modules}
    moved = editor.learn(State(), Lesson(news)).weights(none)
    before, after = editor.pairs({}, rows)[1], editor.pairs({n: torch.from_numpy(w) for n, w in moved.items()}, rows)[1]
    assert (after < before) == falls


def test_a_network_of_another_rule_is_refused_from_either_side(loaded: LoadedModel) -> None:
    for rule, other in (("mend", "rledit"), ("rledit", "mend"), ("mend", "joint")):
        given = Given(pack(networks_for(loaded, other)))
        with pytest.raises(UsageError, match=f"expected one for {rule}"):
            rule_of(rule).require(rule_of(rule).settings(), given)
    with pytest.raises(UsageError, match="trained for the mend solve"):
        rule_of("malmen").require(rule_of("malmen").settings(editor="malmen"), Given(pack(networks_for(loaded))))


def test_a_shift_that_is_no_number_is_refused(make_mend: MakeMend, news: list[Fact]) -> None:
    editor = make_mend()
    for network in editor.networks.networks.values():
        network.factor.fill_(float("inf"))  # type: ignore[operator, union-attr]
    with pytest.raises(StepRefusedError, match="not finite"):
        editor.learn(State(), Lesson(news[:2]))
