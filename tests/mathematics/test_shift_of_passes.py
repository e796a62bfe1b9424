"""The shift of a batch: the sum of its passes, as factors where these are smaller; settings that can be stored."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from lifelong_edit.editors.ridge.batch import Bench, SolveState, edit_batch, total_shift
from lifelong_edit.editors.ridge.settings import Settings
from lifelong_edit.errors import StepRefusedError, UsageError
from lifelong_edit.facts import Fact
from lifelong_edit.numerics.solver import Solution, factorise, solve
from lifelong_edit.stores.tensors import Dense, Factors, materialise


def solved(rows: int, passes: int, woodbury: bool) -> list[tuple[Tensor, Solution]]:
    """D and solution of several passes over the same P."""
    g = torch.Generator().manual_seed(rows)
    found = []
    for _ in range(passes):
        keys, values = torch.randn(rows, 64, generator=g), torch.randn(rows, 16, generator=g)
        preserved = torch.diag(torch.logspace(-1, 3, 64, dtype=torch.float64))
        kept = factorise(preserved, 1.0) if woodbury else None
        found.append((values, solve(keys, values, 0.5 + torch.rand(rows, generator=g), preserved, 1.0, kept)))
    return found


@pytest.mark.parametrize("woodbury", [False, True])
@pytest.mark.parametrize(
    ("rows", "passes", "kind"), [(3, 2, Factors), (5, 1, Factors), (12, 1, Factors), (9, 2, Dense)]
)
def test_the_smaller_form_of_the_same_sum(rows: int, passes: int, kind: type, woodbury: bool) -> None:
    parts = solved(rows, passes, woodbury)
    shift = total_shift(parts)
    assert isinstance(shift, kind)
    wanted = sum((s.shift for _, s in parts), start=torch.zeros(64, 16, dtype=torch.float64)).numpy()
    # Two factors rounded to float32, and a product of at most twelve terms.
    np.testing.assert_allclose(materialise(shift), wanted, rtol=1e-4, atol=1e-6 * np.abs(wanted).max())
    assert materialise(shift).dtype == np.float32
    if passes > 1:
        assert not np.allclose(materialise(total_shift(parts[:1])), wanted, rtol=1e-2)


def test_a_shift_beyond_float32_is_refused() -> None:
    values, solution = solved(3, 1, False)[0]
    huge = Solution(solution.shift * 1e40, solution.keys, solution.weights, solution.system)
    with pytest.raises(StepRefusedError, match="not finite"):
        total_shift([(values, huge)])


def test_one_short_fact_is_stored_as_factors_and_leaves_the_same_keys(
    make_bench: Callable[..., Bench], news: list[Fact]
) -> None:
    bench = make_bench(phrasings=0, preserved=0, passes=1)
    found = edit_batch(bench, SolveState({}, {}, {}), news[:1])
    assert all(isinstance(s, Factors) for s in found.shift.values())
    # The model is left at the proposal.
    for m in bench.loaded.modules:
        weight = bench.loaded.model.get_submodule(m.name).weight
        shift = torch.from_numpy(materialise(found.shift[m.name]))
        assert torch.equal(weight, bench.loaded.base_weight(m.name) + shift)
    assert float(np.mean([np.abs(materialise(s)).max() for s in found.shift.values()])) > 1e-4


def test_a_value_that_is_no_number_is_refused_by_the_batch(make_bench: Callable[..., Bench], news: list[Fact]) -> None:
    bench = make_bench()
    module = bench.loaded.modules[-1]
    broken = torch.zeros(module.d_in, module.d_out)
    broken[0, 0] = float("nan")
    with pytest.raises(StepRefusedError):
        edit_batch(bench, SolveState({module.name: broken}, {}, {}), news[:2])


@pytest.mark.parametrize("name", ["eta", "kappa", "trust", "c0", "log_ridge", "preserved_weight", "gate_perplexity"])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_settings_are_numbers_that_json_can_hold(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=name):
        Settings().replace(**{name: value})
    # Why: msgspec writes them as null, which for eta and log_ridge reads as "the default".
    assert json.loads(msgspec.json.encode({name: value})) == {name: None}


@pytest.mark.parametrize(
    ("name", "value"), [("passes", 0), ("kappa", 0.0), ("eta", 0.0), ("c0", -1.0), ("ask", "x"), ("editor", "rome")]
)
def test_settings_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=name):
        Settings().replace(**{name: value})
    assert msgspec.json.decode(msgspec.json.encode(Settings()), type=Settings) == Settings()
