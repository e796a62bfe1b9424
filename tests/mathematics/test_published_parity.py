"""`ask: published` against MALMEN's equations (arXiv 2311.04661, sections 4.1 and 4.2) evaluated in NumPy.

The judge takes nothing from the package but the tokens and the network's parameters: keys and gradients come from
plain autograd, one fact at a time, without padding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from lifelong_edit.bench import State
from lifelong_edit.editors.contract import Lesson, moved_by
from lifelong_edit.editors.malmen.network import NetworkSet
from lifelong_edit.editors.ridge.editor import RidgeEditor
from lifelong_edit.facts import Fact
from lifelong_edit.models import LoadedModel, encode
from lifelong_edit.stores.tensors import materialise
from tests.mathematics.conftest import MakeEditor, shift_of

Pairs = dict[str, list[tuple[np.ndarray, np.ndarray]]]


def product(name: str, module: Any, seen: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> Any:
    """xW + b in place of the module's own forward, remembering x and the output; the lowest one starts the graph."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x @ module.weight + module.bias
        out = out if out.requires_grad else out.requires_grad_()
        seen[name] = (x.detach(), out)
        return out

    return forward


def traced(loaded: LoadedModel, facts: list[Fact]) -> Pairs:
    """(K, G) of each fact and module: logits of the whole sequence, mean cross-entropy of the answer."""
    pairs: Pairs = {m.name: [] for m in loaded.modules}
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    modules = {name: loaded.model.get_submodule(name) for name in pairs}
    for name, module in modules.items():
        module.forward = product(name, module, seen)
    try:
        for fact in facts:
            e = encode(loaded.tokenizer, fact.prompt, fact.target, fact.subject)
            answer, subject = slice(e.answer_start - 1, len(e.ids) - 1), slice(*e.subject)
            at = {m.name: answer if m.positions == "answer" else subject for m in loaded.modules}
            ids = torch.tensor([e.ids])
            logits = loaded.model(input_ids=ids).logits[0, answer]
            loss = torch.nn.functional.cross_entropy(logits, ids[0, e.answer_start :])
            found = torch.autograd.grad(loss, [seen[name][1] for name in pairs])
            for name, g in zip(pairs, found, strict=True):
                keys, gradients = seen[name][0][0, at[name]], g[0, at[name]]
                pairs[name].append((keys.double().numpy(), gradients.double().numpy()))
    finally:
        for module in modules.values():
            del module.forward
    return pairs


def published(networks: NetworkSet, module: str, layer: int, keys: np.ndarray, grads: np.ndarray) -> np.ndarray:
    """S = (KᵀK + λI)⁻¹KᵀD with D = −η (k·k̃) g̃ and blocks y + scale·relu(yAB + b) + shift, float64."""
    tensors = {n: t.double().numpy() for n, t in networks.state_dict().items()}
    front = f"networks.{keys.shape[1]}x{grads.shape[1]}."
    y = (np.concatenate([keys, grads], 1) - tensors[front + "mean"]) / tensors[front + "deviation"]
    for block in range(networks.config.blocks):
        a, b, bias, scale, shift = (
            tensors[f"{front}blocks.{block}.{part}"] for part in ("a", "b", "bias", "scale", "shift")
        )
        y = y + scale[layer] * np.maximum(y @ a @ b + bias, 0) + shift[layer]
    key, grad = y[:, : keys.shape[1]], y[:, keys.shape[1] :]
    values = -np.exp(tensors[front + "log_step"][layer]) * (keys * key).sum(1, keepdims=True) * grad
    ridge = np.exp(tensors[front + "log_ridge"][layer])
    answer: np.ndarray = np.linalg.solve(keys.T @ keys + ridge * np.eye(keys.shape[1]), keys.T @ values)
    return answer


def errors(editor: RidgeEditor, networks: NetworkSet, facts: list[Fact]) -> list[float]:
    """Relative error of each module's shift."""
    found = shift_of(editor.learn(State(), Lesson(facts)))
    pairs = traced(editor.bench.loaded, facts)
    result = []
    for layer, (name, parts) in enumerate(pairs.items()):
        keys, grads = (np.concatenate([p[i] for p in parts]) for i in (0, 1))
        wanted = published(networks, name, layer, keys, grads)
        result.append(float(np.linalg.norm(materialise(found[name]) - wanted) / np.linalg.norm(wanted)))
    return result


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_deltas_equal_the_published_equations(
    make_editor: MakeEditor, random_network: Callable[..., NetworkSet], news: list[Fact], seed: int
) -> None:
    networks = random_network("published", seed=seed)
    editor = make_editor(networks, editor="malmen", ask="published", phrasings=0, eta=None)
    # float32 trace and network on our side, float64 in the judge: 1e-6 to 3e-6 is found.
    assert max(errors(editor, networks, news)) < 1e-4


@pytest.mark.parametrize("broken", ["scale", "shift", "bias", "log_step", "log_ridge", "mean"])
def test_every_parameter_of_the_network_matters_to_the_judge(
    make_editor: MakeEditor, random_network: Callable[..., NetworkSet], news: list[Fact], broken: str
) -> None:
    networks, wrong = random_network("published"), random_network("published")
    for name, tensor in wrong.state_dict().items():
        if name.endswith(broken):
            tensor.add_(0.3)
    editor = make_editor(wrong, editor="malmen", ask="published", phrasings=0, eta=None)
    assert max(errors(editor, networks, news)) > 5e-3


def test_published_is_one_pass_without_preservation(
    make_editor: MakeEditor, random_network: Callable[..., NetworkSet], news: list[Fact]
) -> None:
    """Whatever the settings say of passes, text, earlier facts and preserved prompts."""
    networks = random_network("published")
    editor = make_editor(networks, editor="malmen", ask="published", phrasings=0, eta=None, passes=4, c0=1e4)
    state = moved_by(State(), editor.learn(State(), Lesson(news[:4])), news[:4])
    state.shifts = {}  # at other weights it would ask for something else
    again = editor.learn(state, Lesson(news[4:8]))
    alone = editor.learn(State(), Lesson(news[4:8]))
    assert state.live and state.keys
    assert again.report["passes"] == 1
    assert again.report["rows"] == {"new": 4, "rehearsal": 0, "preserved": 0}
    for name in editor.bench.names:
        assert materialise(shift_of(again)[name]).tobytes() == materialise(shift_of(alone)[name]).tobytes()
