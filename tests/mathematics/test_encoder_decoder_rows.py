"""MALMEN on a T5 (`ask: published`) against its equations in NumPy, with the rows of the published positions.

The judge takes from the package nothing but the network's parameters: an encoder's module has a row at each token of
the question, a decoder's at each token of the answer; the closing token is neither taught nor scored.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lifelong_edit.bench import Fixed, State, prepare
from lifelong_edit.editors.contract import Lesson
from lifelong_edit.editors.malmen.network import NetworkSet
from lifelong_edit.facts import Fact, Probe
from lifelong_edit.models import LoadedModel, load_model
from lifelong_edit.stores.tensors import materialise
from lifelong_edit.tracing.rows import Row, fact_rows
from lifelong_edit.tracing.text import text_statistics
from lifelong_edit.tracing.trace import trace
from tests.mathematics.conftest import BASIC, MakeEditor, shift_of
from tests.mathematics.test_published_parity import published

Pairs = dict[str, list[tuple[np.ndarray, np.ndarray]]]


@pytest.fixture
def loaded(tiny_t5: Path) -> LoadedModel:
    return load_model(str(tiny_t5), modules=["2-3", "5-6"])


@pytest.fixture
def fixed(loaded: LoadedModel, sentences: list[str], probes: list[Probe]) -> Fixed:
    return prepare(loaded, BASIC, text=[" ".join(sentences * 20)], preserve=probes)


def watched(name: str, keys: dict[str, Tensor], added: dict[str, Tensor]) -> Callable[..., Tensor]:
    """A hook that keeps a module's input and adds a leaf of zeros to its output."""

    def hook(_: object, args: tuple[Tensor], out: Tensor) -> Tensor:
        keys[name], added[name] = args[0][0], torch.zeros_like(out, requires_grad=True)
        return out + added[name]

    return hook


def judged(loaded: LoadedModel, facts: list[Fact]) -> Pairs:
    """(K, G) of each fact and module by plain autograd, one fact at a time: every token of a module's sequence."""
    pairs: Pairs = {m.name: [] for m in loaded.modules}
    for fact in facts:
        ids = torch.tensor([loaded.tokenizer(fact.prompt)["input_ids"]])
        answer = torch.tensor([loaded.tokenizer(fact.target, add_special_tokens=False)["input_ids"]])
        begun = torch.cat([torch.zeros(1, 1, dtype=torch.long), answer[:, :-1]], 1)
        keys, added = dict[str, Tensor](), dict[str, Tensor]()
        handles = [loaded.model.get_submodule(name).register_forward_hook(watched(name, keys, added)) for name in pairs]
        logits = loaded.model(input_ids=ids, decoder_input_ids=begun).logits[0]
        for handle in handles:
            handle.remove()
        loss = torch.nn.functional.cross_entropy(logits, answer[0])
        for name, gradient in zip(pairs, torch.autograd.grad(loss, [added[n] for n in pairs]), strict=True):
            assert len(keys[name]) == (ids if "encoder." in name else answer).shape[1]
            pairs[name].append((keys[name].detach().double().numpy(), gradient[0].double().numpy()))
    return pairs


def joined(pairs: Pairs, name: str) -> tuple[np.ndarray, np.ndarray]:
    keys, gradients = zip(*pairs[name], strict=True)
    return np.concatenate(keys), np.concatenate(gradients)


@pytest.mark.parametrize("seed", [0, 1])
def test_shifts_equal_the_published_equations(
    make_editor: MakeEditor, random_network: Callable[..., NetworkSet], news: list[Fact], seed: int
) -> None:
    networks = random_network("published", seed=seed)
    editor = make_editor(networks, editor="malmen", ask="published", phrasings=0, eta=None)
    found = shift_of(editor.learn(State(), Lesson(news)))
    pairs = judged(editor.bench.loaded, news)
    for layer, name in enumerate(pairs):
        wanted = published(networks, name, layer, *joined(pairs, name))
        # float32 trace and network on our side, float64 in the judge.
        assert np.linalg.norm(materialise(found[name]) - wanted) / np.linalg.norm(wanted) < 1e-4, name


@pytest.mark.parametrize("micro_batch", [1, 5, 64])
def test_rows_are_those_of_plain_autograd(loaded: LoadedModel, news: list[Fact], micro_batch: int) -> None:
    """Keys, gradients and whose row each is, where modules have different numbers of rows."""
    rows = fact_rows(loaded, news, 0, closed=False)
    found, pairs = trace(loaded, rows, micro_batch), judged(loaded, news)
    for module in loaded.modules:
        name, (keys, gradients) = module.name, joined(pairs, module.name)
        np.testing.assert_allclose(found.keys[name].numpy(), keys, rtol=1e-4, atol=1e-5)
        assert np.linalg.norm(found.gradients[name].numpy() - gradients) < 1e-4 * np.linalg.norm(gradients)
        counts = torch.bincount(found.row[name], minlength=len(rows)).tolist()
        assert counts == [len(k) for k, _ in pairs[name]] == [row.positions_in(module) for row in rows]
    sizes = {len(found.row[m.name]) for m in loaded.modules}
    assert len(sizes) == 2, "all modules have as many rows"


def test_everywhere_is_all_that_a_side_reads(loaded: LoadedModel, news: list[Fact]) -> None:
    """As MEND has it: all tokens of the question in the encoder, all that were given to the decoder there."""
    rows: list[Row] = fact_rows(loaded, news[:4], 0)
    slots, everywhere = (trace(loaded, rows, 4, everywhere=every) for every in (False, True))
    for name in slots.keys:
        torch.testing.assert_close(everywhere.keys[name], slots.keys[name])


def test_each_side_of_a_text_is_measured_by_its_own_half(loaded: LoadedModel, sentences: list[str]) -> None:
    """The encoder reads the first half of a window and the closing token, the decoder writes the second."""
    ids: Any = loaded.tokenizer(" ".join(sentences), add_special_tokens=False)["input_ids"]
    windows = torch.tensor([ids[:20], ids[20:40]])
    statistics = text_statistics(loaded, windows, 1)
    assert [statistics.tokens[m.name] for m in loaded.modules] == [22, 22, 20, 20]
