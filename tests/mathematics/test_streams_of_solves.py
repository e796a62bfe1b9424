"""Successive solves with all earlier keys in P are recursive least squares: together, one joint ridge solution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lifelong_edit.numerics.grams import ExactGram, FactKeys, grid_scale, to_grid
from lifelong_edit.numerics.solver import factorise, solve
from lifelong_edit.tracing.trace import trace
from tests.mathematics.conftest import MakeEditor, gram_of

D_IN, D_OUT, RIDGE, C0 = 30, 7, 0.4, 12.0


def batches(seed: int, count: int = 6, n: int = 8) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Keys and value differences of successive batches, and a mean text gram, float64."""
    g = torch.Generator().manual_seed(seed)
    text = torch.randn(200, D_IN, generator=g, dtype=torch.float64)
    parts = [tuple(torch.randn(n, d, generator=g, dtype=torch.float64) for d in (D_IN, D_OUT)) for _ in range(count)]
    return [(k, v) for k, v in parts], text.T @ text / 200


def stream(
    parts: list[tuple[Tensor, Tensor]], gram: Tensor, *, forget: int = 0, woodbury: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """ΔW after one pass per batch and the targets T = D + KΔW of each; forget: how many earlier batches P lacks."""
    shift, targets = torch.zeros(D_IN, D_OUT, dtype=torch.float64), []
    for i, (keys, values) in enumerate(parts):
        earlier = [k for k, _ in parts[: max(0, i - forget)]]
        preserved = C0 * gram + sum((k.T @ k for k in earlier), start=torch.zeros_like(gram))
        targets.append(values + keys @ shift)
        kept = factorise(preserved, RIDGE) if woodbury else None
        shift = shift + solve(keys, values, torch.ones(len(keys)), preserved, RIDGE, kept).shift
    return shift, targets


def joint(parts: list[tuple[Tensor, Tensor]], targets: list[Tensor], gram: Tensor) -> np.ndarray:
    """The ridge solution for all keys and targets at once: NumPy's least squares on stacked rows."""
    text = np.linalg.cholesky(C0 * gram.numpy() + RIDGE * np.eye(D_IN)).T
    keys = np.concatenate([text, *(k.numpy() for k, _ in parts)])
    wanted = np.concatenate([np.zeros((D_IN, D_OUT)), *(t.numpy() for t in targets)])
    answer: np.ndarray = np.linalg.lstsq(keys, wanted, rcond=None)[0]
    return answer


def off(found: Tensor, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found.numpy() - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("woodbury", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_their_sum_is_the_joint_solution(seed: int, woodbury: bool) -> None:
    parts, gram = batches(seed)
    shift, targets = stream(parts, gram, woodbury=woodbury)
    # Condition numbers near 1e2, six solves: 3e-15 is found.
    assert off(shift, joint(parts, targets, gram)) < 1e-11


def test_it_is_not_when_a_batch_is_missing_from_p() -> None:
    parts, gram = batches(0)
    shift, targets = stream(parts, gram, forget=1)
    assert off(shift, joint(parts, targets, gram)) > 1e-3


def test_it_is_not_when_targets_are_the_asks_alone() -> None:
    parts, gram = batches(0)
    shift, _ = stream(parts, gram)
    assert off(shift, joint(parts, [v for _, v in parts], gram)) > 1e-3


def test_it_holds_with_the_grams_of_stored_keys() -> None:
    """As the store does it: keys on the grid, P from the exact gram of live keys."""
    parts, gram = batches(5)
    scale = grid_scale(torch.cat([k for k, _ in parts]).abs().amax(0))
    units = [to_grid(k, scale) for k, _ in parts]
    stored = [(torch.from_numpy(u.astype(np.float64)) * scale, v) for u, (_, v) in zip(units, parts, strict=True)]
    live, held = ExactGram("m", scale), {}
    shift, targets = torch.zeros(D_IN, D_OUT, dtype=torch.float64), []
    for i, (keys, values) in enumerate(stored):
        targets.append(values + keys @ shift)
        preserved = C0 * gram + live.over(held)
        shift = shift + solve(keys, values, torch.ones(len(keys)), preserved, RIDGE).shift
        held[str(i)] = FactKeys({"m": units[i]}, np.zeros(1, np.float32))
    assert off(shift, joint(stored, targets, gram)) < 1e-11
    # Rounded keys are other keys: against those as traced the difference is that of the grid.
    assert off(shift, joint(parts, targets, gram)) > 1e-7


@pytest.mark.parametrize(("number", "c0"), [(0, 70.0), (1, 70.0), (2, 50.0), (3, 50.0)])
def test_the_bench_preserves_text_and_live_keys(make_editor: MakeEditor, number: int, c0: float) -> None:
    """P = c₀C₀ + Σ kᵀk, against NumPy on what is stored; at the subject with a c₀ of its own."""
    editor = make_editor(c0=50.0, subject_c0=70.0, preserved_keys=0.0)
    bench = editor.bench
    name = bench.names[number]
    g = np.random.default_rng(1)
    live = {
        str(i): FactKeys({n: g.integers(-99, 99, (3, 128)).astype(np.int16) for n in bench.names}, g.random(4))
        for i in range(4)
    }
    keys = np.concatenate([k.rows[name] for k in live.values()]) * bench.scale[name].numpy()
    wanted = c0 * bench.text_gram[name].numpy() + keys.T @ keys
    np.testing.assert_allclose(gram_of(editor, name, live).numpy(), wanted, rtol=1e-12, atol=1e-12)
    assert not np.allclose(gram_of(editor, name).numpy(), wanted)


@pytest.mark.parametrize("number", range(4))
def test_the_bench_preserves_the_keys_of_preserved_prompts(make_editor: MakeEditor, number: int) -> None:
    """P gains c₁ Σ kᵀk over the prompts' keys in the base model, but for those about subjects that were edited.

    In modules that are edited at the subject and in those at the answer.
    """
    editor = make_editor(preserved_keys=3.0)
    bench = editor.bench
    name, prompts = bench.names[number], bench.preserved
    edited = frozenset([(prompts.probes[0].subject or "").casefold()])
    assert edited != {""}
    own = [i for i in range(len(prompts.probes)) if i not in prompts.guard]
    kept = [i for i in own if (prompts.probes[i].subject or "").casefold() not in edited]
    assert 0 < len(kept) < len(own) < len(prompts.probes)
    traced = trace(bench.loaded, [prompts.row(i, 1.0) for i in kept], 64)
    keys = traced.keys[name].double().numpy()
    plain = gram_of(make_editor(preserved_keys=0.0), name).numpy()
    found = gram_of(editor, name, subjects=edited).numpy() - plain
    # The keys are those traced, rounded to the grid.
    assert np.linalg.norm(found - 3.0 * keys.T @ keys) < 1e-3 * np.linalg.norm(found)
    everything = gram_of(editor, name).numpy() - plain
    assert np.trace(everything) > 1.001 * np.trace(found)
    np.testing.assert_array_equal(gram_of(editor, name, subjects=edited).numpy() - plain, found)
