"""UltraEdit's running moments: those of all rows at once, carried as arrays in the state."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lifelong_edit.editors.ridge.targets import Asker, Moments, Seen
from lifelong_edit.editors.ultraedit.rule import NormalisedTargets
from lifelong_edit.stores.tensors import decode_tensors, encode_tensors

Rows = tuple[Tensor, Tensor]


def rows(seed: int, n: int, d_in: int = 5, d_out: int = 3) -> Rows:
    """Keys and gradients whose mean is far from zero, in which naive sums of squares would cancel."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d_in, generator=g) + 30, torch.randn(n, d_out, generator=g) * 1e-3


def ready(eta: float, batch: Rows, state: Moments, centre: bool = False) -> Asker:
    """The rule made ready on a batch of one module."""
    keys, gradients = batch
    return NormalisedTargets(eta, centre).ready([Seen({"m": keys}, {"m": gradients})], state)


def moments(batches: list[Rows]) -> dict[str, np.ndarray]:
    """The state after the editor has seen the batches one after the other, stored and read in between."""
    state: dict[str, np.ndarray] = {}
    for batch in batches:
        kept = ready(1e-6, batch, state).moments
        state = {n: np.array(a) for n, a in decode_tensors(encode_tensors(kept)).items()}
        assert {n: a.tobytes() for n, a in state.items()} == {n: a.tobytes() for n, a in kept.items()}
        assert all(a.shape == kept[n].shape and a.dtype == np.float64 for n, a in state.items())
    return state


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), sizes=st.lists(st.integers(1, 12), min_size=1, max_size=6))
def test_running_moments_are_those_of_all_rows_at_once(seed: int, sizes: list[int]) -> None:
    batches = [rows(seed + i, n) for i, n in enumerate(sizes)]
    state = moments(batches)
    whole = np.concatenate([torch.cat(b, -1).double().numpy() for b in batches])
    assert float(state["m/count"]) == len(whole)
    np.testing.assert_allclose(state["m/mean"], whole.mean(0), rtol=1e-10, atol=1e-12)
    spread = ((whole - whole.mean(0)) ** 2).sum(0)
    # Two-pass sums in float64; with naive sums of squares 30² · eps would already be 1e-13 a row.
    np.testing.assert_allclose(state["m/squares"], spread, rtol=1e-9, atol=1e-11)


def test_the_judge_notices_a_batch_that_was_not_carried_on() -> None:
    batches = [rows(1, 4), rows(2, 6)]
    assert not np.allclose(moments(batches)["m/squares"], moments(batches[1:])["m/squares"])
    # What is left out when two means differ: the term count·count′/total·(difference)².
    apart = sum(moments([b])["m/squares"] for b in batches)
    assert not np.allclose(moments(batches)["m/squares"], apart, rtol=1e-3)


@pytest.mark.parametrize("centre", [False, True])
def test_the_rule_is_the_formula(centre: bool) -> None:
    """d = −η ‖ĥ‖² ĝ with the moments of earlier batches and this one, in NumPy."""
    earlier, (keys, gradients) = rows(3, 9), rows(4, 7)
    state = moments([earlier])
    asker = ready(0.01, (keys, gradients), state, centre)
    whole = np.concatenate([torch.cat(b, -1).double().numpy() for b in (earlier, (keys, gradients))])
    mean, deviation = whole.mean(0), whole.std(0, ddof=1)
    key = (keys.double().numpy() - mean[:5]) / deviation[:5]
    gradient = (gradients.double().numpy() - (mean[5:] if centre else 0)) / deviation[5:]
    wanted = -0.01 * (key**2).sum(1, keepdims=True) * gradient
    np.testing.assert_allclose(asker.ask("m", keys, gradients).numpy(), wanted, rtol=1e-3, atol=1e-5)
    without = -0.01 * (key**2).sum(1, keepdims=True) * gradients.double().numpy()
    assert not np.allclose(asker.ask("m", keys, gradients).numpy(), without, rtol=1e-2)


def test_the_state_given_is_not_changed() -> None:
    state = moments([rows(5, 4)])
    before = {n: a.copy() for n, a in state.items()}
    keys, gradients = rows(6, 4)
    for array in state.values():
        array.flags.writeable = True
    asker = ready(1e-6, (keys, gradients), state)
    asker.ask("m", keys, gradients)
    assert all(np.array_equal(a, before[n]) for n, a in state.items())


def test_a_state_that_cannot_be_written_to_is_read_all_the_same() -> None:
    state = moments([rows(7, 4)])
    for array in state.values():
        array.flags.writeable = False
    keys, gradients = rows(8, 4)
    assert float(ready(1e-6, (keys, gradients), state).moments["m/count"]) == 8
