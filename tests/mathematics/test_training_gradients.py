"""Gradients by the edited weights, and through the solve into the network, against autograd on the whole model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lifelong_edit.editors.malmen.network import NetworkSet
from lifelong_edit.facts import Fact
from lifelong_edit.models import LoadedModel, encode, load_model
from lifelong_edit.numerics.solver import solve, solve_backward
from lifelong_edit.tracing.preservation import base_answers
from lifelong_edit.tracing.rows import Row, fact_rows
from lifelong_edit.tracing.trace import trace
from lifelong_edit.training.episodes import weight_gradients
from tests.mathematics.conftest import MakeEditor, Stand, gram_of


def rows_of(model: LoadedModel, news: list[Fact], stand: Stand) -> list[Row]:
    """Weighted facts and preserved prompts; then the model is edited, so that the latter count."""
    rows = [dataclasses.replace(r, weight=0.3 + i) for i, r in enumerate(fact_rows(model, news[:4], 1))]
    encoded = [encode(model.tokenizer, f"{f.subject} speaks", f.target) for f in news[5:8]]
    kept = zip(encoded, base_answers(model, encoded, 4), strict=True)
    rows += [Row(e, "preserved", 1.5, None, b) for e, b in kept]
    g = torch.Generator().manual_seed(4)
    stand(model, {m.name: torch.randn(m.d_in, m.d_out, generator=g) * 0.05 for m in model.modules})
    return rows


def row_loss(row: Row, logits: Tensor) -> Tensor:
    """Cross-entropy of the answer, or KL over the kept tokens and all others; logits (t, vocabulary)."""
    logits = logits[row.encoded.answer_start - 1 : len(row.encoded.ids) - 1]
    answer = torch.tensor(row.encoded.ids[row.encoded.answer_start :])
    if row.base is None:
        return torch.nn.functional.cross_entropy(logits, answer)
    ids = torch.from_numpy(row.base.top_ids)
    other = torch.ones_like(logits).scatter(-1, ids, 0.0)
    p = logits.softmax(-1)
    q = torch.cat([p.gather(-1, ids), (p * other).sum(-1, keepdim=True)], -1).log()
    base = torch.cat([torch.from_numpy(row.base.top_logp), torch.from_numpy(row.base.rest_logp)[:, None]], -1)
    return (base.exp() * (base - q)).sum()


def by_autograd(model: LoadedModel, rows: list[Row]) -> tuple[float, dict[str, Tensor]]:
    """Σ w·loss by the weight matrices as (d_in, d_out), through a functional call of the whole model."""
    weights = {}
    for m in model.modules:
        stored = model.model.get_submodule(m.name).weight.detach()
        weights[m.name] = (stored if m.orientation == "conv1d" else stored.T).clone().requires_grad_()
    replaced = {
        f"{m.name}.weight": weights[m.name] if m.orientation == "conv1d" else weights[m.name].T for m in model.modules
    }
    total = torch.zeros(())
    for row in rows:
        options = {"input_ids": torch.tensor([row.encoded.ids]), "use_cache": False}
        out: Any = torch.func.functional_call(model.model, replaced, args=(), kwargs=options)
        total = total + row.weight * row_loss(row, out.logits[0])
    found = torch.autograd.grad(total, list(weights.values()))
    return float(total.detach()), dict(zip(weights, found, strict=True))


def off(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    return max(float((found[n] - g).norm() / g.norm()) for n, g in wanted.items())


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_weight_gradients_are_those_of_the_whole_model(
    family: str, tiny_gpt2: Path, tiny_llama: Path, tiny_opt: Path, news: list[Fact], stand: Stand
) -> None:
    model = load_model(str({"gpt2": tiny_gpt2, "llama": tiny_llama, "opt": tiny_opt}[family]))
    rows = rows_of(model, news, stand)
    loss, found = weight_gradients(model, rows, 3)
    wanted_loss, wanted = by_autograd(model, rows)
    # float32 sums over rows in another order.
    assert loss == pytest.approx(wanted_loss, rel=1e-5)
    assert off(found, wanted) < 1e-4
    assert all(found[m.name].shape == (m.d_in, m.d_out) for m in model.modules)
    assert not any(p.requires_grad for p in model.model.parameters())
    heavier = [dataclasses.replace(rows[0], weight=2.0), *rows[1:]]
    assert off(weight_gradients(model, heavier, 3)[1], wanted) > 1e-2


def test_the_model_is_left_without_gradients_where_a_pass_fails(
    loaded: LoadedModel, news: list[Fact], stand: Stand
) -> None:
    rows = rows_of(loaded, news, stand)
    beyond = dataclasses.replace(rows[0].encoded, ids=(10**6, *rows[0].encoded.ids[1:]))
    with pytest.raises(IndexError):
        weight_gradients(loaded, [dataclasses.replace(rows[0], encoded=beyond)], 3)
    assert not any(p.requires_grad for p in loaded.model.parameters())


@pytest.mark.parametrize("form", ["joint", "published"])
def test_the_gradient_reaches_the_networks_parameters_through_the_solve(
    make_editor: MakeEditor, random_network: Callable[..., NetworkSet], news: list[Fact], form: str
) -> None:
    """As one pass of training carries it by hand, against autograd through torch.linalg.solve and the network."""
    editor = make_editor(random_network(form), editor="malmen", ask=form, eta=None)
    bench = editor.bench
    rows, name = fact_rows(bench.loaded, news[:4], 1), bench.names[0]
    traced, preserved = trace(bench.loaded, rows, 8), gram_of(editor, bench.names[0])
    keys, gradients, weights = traced.keys[name], traced.gradients[name], traced.weights(rows, name)
    slope = torch.randn(128, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    by_hand = random_network(form).requires_grad_(True)
    values = by_hand.ask(name, keys, gradients)
    solution = solve(keys, values.detach(), weights, preserved, by_hand.ridge(name))
    by_values, by_ridge = solve_backward(solution, slope)
    values.backward(by_values.float())
    network, layer = by_hand.of(name)
    log_ridge = by_ridge * by_hand.ridge(name)

    judge = random_network(form).requires_grad_(True)
    own, _ = judge.of(name)
    k, w = keys.double(), weights.double()
    ridge = own.log_ridge[layer].double().exp()
    system = (k * w[:, None]).T @ k + preserved + ridge * torch.eye(128, dtype=torch.float64)
    asked = judge.ask(name, keys, gradients).double()
    shift = torch.linalg.solve(system, k.T @ (w[:, None] * asked))
    (shift * slope).sum().backward()
    assert own.log_ridge.grad is not None
    assert log_ridge == pytest.approx(float(own.log_ridge.grad[layer]), rel=1e-4)
    found, wanted = dict(network.named_parameters()), dict(own.named_parameters())
    reached = [n for n, p in wanted.items() if p.grad is not None and n != "log_ridge"]
    assert len(reached) == 2 * 5 + 1
    for parameter in reached:
        torch.testing.assert_close(found[parameter].grad, wanted[parameter].grad, rtol=1e-3, atol=1e-5 * math.sqrt(32))
