"""Grams of live keys: exact sums whatever the order, and the grid that makes them so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lifelong_edit.numerics.grams import GRID, HEADROOM, ExactGram, FactKeys, grid_scale, to_grid
from lifelong_edit.tracked import Tracked, Without

WIDTH = 6
POOL = [
    FactKeys(
        {"m": np.random.default_rng(i).integers(-GRID, GRID + 1, (1 + i % 4, WIDTH)).astype(np.int16)},
        np.zeros(WIDTH, np.float32),
    )
    for i in range(12)
]
SCALE = torch.exp2(torch.arange(WIDTH, dtype=torch.float64) - 9)
histories = st.lists(st.sets(st.integers(0, 11)), min_size=1, max_size=8)


def chosen(which: set[int]) -> dict[str, FactKeys]:
    """Facts by number."""
    return {str(i): POOL[i] for i in which}


def judge(which: set[int]) -> np.ndarray:
    """Σ kᵀk in float64 NumPy over the keys in their own units."""
    total = np.zeros((WIDTH, WIDTH))
    for i in which:
        keys = POOL[i].rows["m"].astype(np.float64) * SCALE.numpy()
        total += keys.T @ keys
    return total


@settings(max_examples=60, deadline=None)
@given(histories)
def test_any_history_ends_in_the_bytes_of_a_fresh_sum(history: list[set[int]]) -> None:
    gram = ExactGram("m", SCALE)
    for which in history:
        found = gram.over(chosen(which))
    fresh = ExactGram("m", SCALE).over(chosen(history[-1]))
    assert found.numpy().tobytes() == fresh.numpy().tobytes()
    # Products of 16-bit integers by powers of two: exact in float64, so equal and not close.
    assert np.array_equal(found.numpy(), judge(history[-1]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sets(st.integers(0, 11)), st.sets(st.integers(0, 11))), min_size=1, max_size=8))
def test_a_gram_that_follows_what_changed_is_that_of_a_fresh_sum(history: list[tuple[set[int], set[int]]]) -> None:
    """Facts that come, go, get other keys, or are left out for one sum, in a dictionary that notes it."""
    gram, live = ExactGram("m", SCALE), Tracked[FactKeys]()
    for number, (toggled, apart) in enumerate(history):
        for i in toggled:
            if str(i) in live and i % 2:
                del live[str(i)]
            else:
                live[str(i)] = POOL[(i + number) % 12]
        found = gram.over(Without(live, {str(i) for i in apart}))
        wanted = {name: keys for name, keys in live.items() if int(name) not in apart}
        assert found.numpy().tobytes() == ExactGram("m", SCALE).over(wanted).numpy().tobytes()


def test_sums_of_floats_do_depend_on_their_history() -> None:
    """The reason for the grid: the same facts added and taken away in float32 leave other bytes."""
    keys = [torch.from_numpy(k.rows["m"].astype(np.float32)) * SCALE.float() for k in POOL]
    total = sum((k.T @ k for k in keys), start=torch.zeros(WIDTH, WIDTH))
    for k in keys[3:]:
        total = total - k.T @ k
    fresh = sum((k.T @ k for k in keys[:3]), start=torch.zeros(WIDTH, WIDTH))
    assert not torch.equal(total, fresh)


def test_a_fact_whose_keys_were_traced_again_counts_with_the_new_ones() -> None:
    gram = ExactGram("m", SCALE)
    gram.over(chosen({1, 2}))
    found = gram.over({"1": POOL[7], "2": POOL[2]})
    assert np.array_equal(found.numpy(), judge({7, 2}))
    assert not np.array_equal(found.numpy(), judge({1, 2}))


def test_the_gram_that_was_given_out_does_not_change() -> None:
    gram = ExactGram("m", SCALE)
    first = gram.over(chosen({1}))
    before = first.clone()
    first_again = gram.over(chosen({1, 2, 3}))
    assert torch.equal(first, before)
    assert not torch.equal(first, first_again)


def test_greatest_products_of_many_rows_are_exact() -> None:
    rows = np.full((4096, WIDTH), GRID, np.int16)
    gram = ExactGram("m", torch.ones(WIDTH, dtype=torch.float64))
    found = gram.over({str(i): FactKeys({"m": rows}, np.zeros(1, np.float32)) for i in range(3)})
    assert int(found[0, 0]) == 3 * 4096 * GRID * GRID


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.floats(1e-3, 1e5))
def test_rounding_is_at_most_half_a_unit_and_the_range_is_as_promised(seed: int, size: float) -> None:
    g = torch.Generator().manual_seed(seed)
    largest = torch.rand(WIDTH, generator=g, dtype=torch.float64) * size
    scale = grid_scale(largest)
    assert torch.equal(scale, torch.exp2(torch.log2(scale).round()))
    bound = HEADROOM * largest.clamp_min(1e-4)
    assert bool((scale * GRID >= bound * (1 - 1e-12)).all())
    assert bool((scale * GRID <= 2 * bound * (1 + 1e-12)).all())
    keys = (2 * torch.rand(5, WIDTH, generator=g, dtype=torch.float64) - 1) * bound
    back = torch.from_numpy(to_grid(keys, scale).astype(np.float64)) * scale
    assert bool(((back - keys).abs() <= scale / 2 * (1 + 1e-9)).all())
    # Relative to the greatest text key that is at most 8/32767: a gram off by less than 3e-4.
    assert float(((back - keys).abs() / largest.clamp_min(1e-4)).max()) <= HEADROOM / GRID * (1 + 1e-9)


@pytest.mark.parametrize("beyond", [1.0 + 2**-15, 2.0, 1e6, float("inf")])
def test_out_of_range_is_cut_off_and_not_wrapped(beyond: float) -> None:
    scale = torch.ones(2, dtype=torch.float64)
    keys = torch.tensor([[GRID * beyond, -GRID * beyond]], dtype=torch.float64)
    assert to_grid(keys, scale).tolist() == [[GRID, -GRID]]
    if beyond == 2.0:
        wrapped = keys.to(torch.int64).to(torch.int16).tolist()
        assert wrapped != [[GRID, -GRID]]
