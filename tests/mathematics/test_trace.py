"""Keys and gradients of the trace against plain autograd, one row at a time, on tiny models of three families."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lifelong_edit.facts import Fact
from lifelong_edit.models import BASE, LoadedModel, encode, load_model, pad
from lifelong_edit.tasks.causal import task as causal
from lifelong_edit.tasks.causal.scoring import editing_mask
from lifelong_edit.tracing import trace as tracing
from lifelong_edit.tracing.conflict_keys import lowest_keys
from lifelong_edit.tracing.preservation import base_answers
from lifelong_edit.tracing.rows import Row, fact_rows
from lifelong_edit.tracing.text import text_statistics
from lifelong_edit.tracing.trace import trace
from tests.mathematics.conftest import Stand


@pytest.fixture(params=["gpt2", "llama", "opt"])
def model(request: pytest.FixtureRequest, tiny_gpt2: Path, tiny_llama: Path, tiny_opt: Path) -> LoadedModel:
    """Conv1D; Linear; Linear on flattened positions. Edited a little, so that preserved rows have gradients."""
    folder = {"gpt2": tiny_gpt2, "llama": tiny_llama, "opt": tiny_opt}[request.param]
    return load_model(str(folder), modules=["0-1@subject", "2-3"])


def rows_of(model: LoadedModel, news: list[Fact], stand: Stand) -> list[Row]:
    """Facts in two phrasings and preserved prompts, mixed, of many lengths; then the model is edited."""
    rows = fact_rows(model, news[:5], 1)
    encoded = [encode(model.tokenizer, f"{f.subject} speaks", f.target, f.subject) for f in news[5:9]]
    bases = base_answers(model, encoded, 4)
    kept = [Row(e, "preserved", 1.5, None, b) for e, b in zip(encoded, bases, strict=True)]
    g = torch.Generator().manual_seed(4)
    stand(model, {m.name: torch.randn(m.d_in, m.d_out, generator=g) * 0.05 for m in model.modules})
    return [*rows[:4], kept[0], *rows[4:8], *kept[1:], *rows[8:]]


def alone(model: LoadedModel, row: Row) -> tuple[dict[str, Tensor], dict[str, Tensor], float]:
    """Keys, gradients and loss of one row: no padding, logits everywhere, one leaf added to each output."""
    ids = torch.tensor([row.encoded.ids])
    answers = slice(row.encoded.answer_start - 1, len(row.encoded.ids) - 1)
    at = {m.name: answers if m.positions == "answer" else slice(*row.encoded.subject) for m in model.modules}
    keys: dict[str, Tensor] = {}
    added = {m.name: torch.zeros(ids.shape[1], m.d_out, requires_grad=True) for m in model.modules}
    handles = []
    for m in model.modules:

        def hook(_: object, args: tuple[Tensor], out: Tensor, name: str = m.name) -> Tensor:
            keys[name] = args[0].reshape(ids.shape[1], -1)
            return out + added[name].reshape(out.shape)

        handles.append(model.model.get_submodule(m.name).register_forward_hook(hook))
    logits = model.model(input_ids=ids).logits[0, answers].float()
    for handle in handles:
        handle.remove()
    answer = ids[0, row.encoded.answer_start :]
    if row.base is None:
        loss = -logits.log_softmax(-1)[range(len(answer)), answer].mean()
    else:
        loss = bucketed_kl(logits, row.base.top_ids, row.base.top_logp, row.base.rest_logp)
    found = torch.autograd.grad(loss, list(added.values()))
    gradients = {name: g[at[name]] for name, g in zip(added, found, strict=True)}
    return {n: k[at[n]].detach() for n, k in keys.items()}, gradients, float(loss.detach())


def bucketed_kl(logits: Tensor, ids: np.ndarray, logp: np.ndarray, rest: np.ndarray) -> Tensor:
    """torch's kl_div between distributions over the kept tokens and one bucket for all others, summed."""
    probabilities = logits.softmax(-1)
    kept = probabilities.gather(-1, torch.from_numpy(ids))
    other = torch.ones_like(probabilities).scatter(-1, torch.from_numpy(ids), 0.0)
    model = torch.cat([kept, (probabilities * other).sum(-1, keepdim=True)], -1)
    base = torch.cat([torch.from_numpy(logp), torch.from_numpy(rest)[:, None]], -1)
    return torch.nn.functional.kl_div(model.log(), base, log_target=True, reduction="sum")


def worst(model: LoadedModel, rows: list[Row], micro_batch: int) -> float:
    """Largest relative error of keys, gradients and losses over all rows, each at its own place."""
    found = trace(model, rows, micro_batch)
    errors = []
    for i, row in enumerate(rows):
        keys, gradients, loss = alone(model, row)
        assert row.positions == len(row.encoded.ids) - row.encoded.answer_start
        for module in model.modules:
            name = module.name
            at = found.row[name] == i
            assert int(at.sum()) == len(keys[name]) == row.positions_in(module)
            pairs = [(found.keys[name][at], keys[name]), (found.gradients[name][at], gradients[name])]
            errors += [float((a - b).norm() / b.norm()) for a, b in pairs if len(b)]
        errors.append(abs(float(found.losses[i]) - loss) / loss)
    return max(errors)


def test_equals_autograd_of_one_row_at_a_time(model: LoadedModel, news: list[Fact], stand: Stand) -> None:
    # float32 forward and backward through four layers: 1.5e-5 is found at worst; a wrong row or position gives 1.
    assert worst(model, rows_of(model, news, stand), 4) < 1e-4


def test_the_judge_notices_a_mean_over_the_micro_batch(
    loaded: LoadedModel, news: list[Fact], stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, whole = rows_of(loaded, news, stand), causal.position_losses

    def mean(logits: Tensor, batch: object, part: list[Row]) -> tuple[Tensor, Tensor]:
        losses, row = whole(logits, batch, part)  # type: ignore[arg-type]
        return losses / len(part), row

    monkeypatch.setattr(causal, "position_losses", mean)
    assert worst(loaded, rows, 4) > 0.5


def test_the_judge_notices_rows_left_in_order_of_length(
    loaded: LoadedModel, news: list[Fact], stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(loaded, news, stand)
    monkeypatch.setattr(
        tracing, "by_length", lambda lengths, size: [sorted(range(len(lengths)), key=lengths.__getitem__)]
    )
    assert worst(loaded, rows, 4) < 1e-4
    monkeypatch.setattr(torch, "argsort", lambda row, stable: torch.arange(len(row)))
    shuffled = trace(loaded, rows, 4)
    monkeypatch.undo()
    right = trace(loaded, rows, 4)
    name = loaded.modules[0].name
    assert not torch.allclose(shuffled.keys[name], right.keys[name], atol=1e-3)


def test_the_order_of_rows_changes_nothing_but_the_order(loaded: LoadedModel, news: list[Fact], stand: Stand) -> None:
    rows = rows_of(loaded, news, stand)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    one, other = trace(loaded, rows, 3), trace(loaded, [rows[i] for i in order], 3)
    for place, i in enumerate(order):
        for name in one.keys:
            for a, b in ((one.keys, other.keys), (one.gradients, other.gradients)):
                at, wanted = other.row[name] == place, one.row[name] == i
                torch.testing.assert_close(b[name][at], a[name][wanted], rtol=1e-4, atol=1e-6)


def test_editing_positions_are_those_whose_next_token_is_an_answer_token(
    loaded: LoadedModel, news: list[Fact], stand: Stand
) -> None:
    encoded = [row.encoded for row in rows_of(loaded, news, stand)]
    batch = pad(encoded, loaded.pad_id, "cpu")
    for e, mask in zip(encoded, editing_mask(batch), strict=True):
        positions = [i for i, on in enumerate(mask.tolist()) if on]
        assert [e.ids[i + 1] for i in positions] == list(e.answer)
        assert positions == list(range(e.answer_start - 1, len(e.ids) - 1))


def test_weights_and_kinds_belong_to_positions(loaded: LoadedModel, news: list[Fact], stand: Stand) -> None:
    rows = [dataclasses.replace(r, weight=i + 0.5) for i, r in enumerate(rows_of(loaded, news, stand))]
    found = trace(loaded, rows, 4, gradients=False)
    assert found.gradients == {}
    for module in loaded.modules:
        counts = [r.positions_in(module) for r in rows]
        weights = found.weights(rows, module.name).tolist()
        assert weights == [i + 0.5 for i, count in enumerate(counts) for _ in range(count)]
        kept = found.kinds(rows, module.name, "preserved").tolist()
        assert kept == [r.kind == "preserved" for r, count in zip(rows, counts, strict=True) for _ in range(count)]


def test_preserved_rows_ask_for_nothing_at_the_base_weights(
    loaded: LoadedModel, news: list[Fact], stand: Stand
) -> None:
    """KL to itself: zero, and its gradient is the rounding of softmax(z) − p; edited weights give a real one."""
    rows = [r for r in rows_of(loaded, news, stand) if r.kind == "preserved"]
    moved = trace(loaded, rows, 8)
    with loaded.at(BASE):
        still = trace(loaded, rows, 8)
    # float32: probabilities to 6e-8 each, times the head's and the layers' weights.
    assert float(still.losses.abs().max()) < 1e-6 * float(moved.losses.min())
    for name in still.gradients:
        assert float(still.gradients[name].norm()) < 1e-4 * float(moved.gradients[name].norm())


def test_a_base_answer_without_the_rest_bucket_would_pull_at_the_base(
    loaded: LoadedModel, news: list[Fact], stand: Stand
) -> None:
    """The mutation: the mass of all other tokens understated, as if only the kept ones counted."""
    rows = [r for r in rows_of(loaded, news, stand) if r.base is not None]
    cut = [
        dataclasses.replace(r, base=dataclasses.replace(r.base, rest_logp=r.base.rest_logp - 3)) for r in rows if r.base
    ]
    with loaded.at(BASE):
        right = {name: float(g.norm()) for name, g in trace(loaded, rows, 8).gradients.items()}
        wrong = trace(loaded, cut, 8).gradients
    for name, gradients in wrong.items():
        assert float(gradients.norm()) > 100 * right[name]


def test_conflict_keys_and_text_statistics_see_the_same_keys(model: LoadedModel, news: list[Fact]) -> None:
    """The other two readers of module inputs, against the trace and against NumPy."""
    rows = fact_rows(model, news, 0)
    found, name = trace(model, rows, 5, gradients=False), model.conflict_module.name
    first = [int((found.row[name] == i).nonzero()[0]) for i in range(len(rows))]
    prompts = [r.encoded.ids[: r.encoded.answer_start] for r in rows]
    torch.testing.assert_close(lowest_keys(model, prompts, 5), found.keys[name][first], rtol=1e-4, atol=1e-6)
    windows = torch.arange(60).reshape(4, 15)
    statistics = text_statistics(model, windows, 3)
    keys: list[Tensor] = []
    handle = model.model.get_submodule(name).register_forward_pre_hook(lambda _, args: keys.append(args[0]))
    with torch.no_grad():
        model.model(input_ids=windows)
    handle.remove()
    flat = keys[0].reshape(60, -1).double().numpy()
    gram = statistics.grams[name].arrays(name, 60)[f"gram/{name}"]
    np.testing.assert_allclose(gram, flat.T @ flat / 60, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(statistics.largest[name].numpy(), np.abs(flat).max(0), rtol=1e-4, atol=1e-6)


def test_worst_is_the_greatest_loss_at_one_position(model: LoadedModel, news: list[Fact], stand: Stand) -> None:
    """Of facts −log p of their least probable token, against logits made everywhere; the mean would hide it."""
    rows = rows_of(model, news, stand)
    found = trace(model, rows, 3, gradients=False)
    hidden = 0
    for i, row in enumerate(rows):
        if row.base is not None:
            continue
        ids = torch.tensor([row.encoded.ids])
        with torch.no_grad():
            logits = model.model(input_ids=ids).logits[0, row.encoded.answer_start - 1 : -1].float()
        answer = ids[0, row.encoded.answer_start :]
        losses = -logits.log_softmax(-1)[range(len(answer)), answer]
        assert float(found.worst[i]) == pytest.approx(float(losses.max()), rel=1e-4)
        hidden += float(found.losses[i]) < 0.99 * float(losses.max())
    assert hidden
