"""The shift of a batch: the sum of its passes, as factors where these are smaller; settings that can be stored."""

from __future__ import annotations

import json
import math

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from lifelong_edit.bench import State
from lifelong_edit.editors.contract import Lesson
from lifelong_edit.editors.ridge.passes import total_shift
from lifelong_edit.editors.ridge.settings import Settings
from lifelong_edit.errors import StepRefusedError, UsageError
from lifelong_edit.facts import Fact
from lifelong_edit.numerics.grams import to_grid
from lifelong_edit.numerics.solver import Solution, factorise, solve
from lifelong_edit.stores.tensors import Dense, Factors, materialise
from lifelong_edit.tracing.rows import fact_rows
from lifelong_edit.tracing.trace import trace
from tests.mathematics.conftest import MakeEditor, shift_of


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
    make_editor: MakeEditor, news: list[Fact]
) -> None:
    editor = make_editor(phrasings=0, preserved=0, passes=1)
    loaded = editor.bench.loaded
    found = editor.learn(State(), Lesson(news[:1]))
    shifts = {name: torch.from_numpy(materialise(shift)) for name, shift in shift_of(found).items()}
    assert all(isinstance(s, Factors) for s in shift_of(found).values())
    assert float(np.mean([float(shift.abs().max()) for shift in shifts.values()])) > 1e-4
    # The model is left as it was; the keys are those at what the stored factors come to, bit for bit.
    for m in loaded.modules:
        assert torch.equal(loaded.weight(m.name), loaded.base_weight(m.name))
    rows = fact_rows(loaded, news[:1], 0)
    with loaded.at(shifts):
        traced = trace(loaded, rows, editor.settings.micro_batch, gradients=False)
    for m in loaded.modules:
        units = to_grid(traced.keys[m.name], editor.bench.scale[m.name])
        np.testing.assert_array_equal(found.keys()[news[0].digest].rows[m.name], units)


def test_a_value_that_is_no_number_is_refused_by_the_batch(make_editor: MakeEditor, news: list[Fact]) -> None:
    editor = make_editor()
    module = editor.bench.loaded.modules[-1]
    broken = torch.zeros(module.d_in, module.d_out)
    broken[0, 0] = float("nan")
    with pytest.raises(StepRefusedError):
        editor.learn(State({module.name: broken}), Lesson(news[:2]))


@pytest.mark.parametrize("name", ["eta", "kappa", "trust", "c0", "log_ridge", "preserved_weight", "gate_perplexity"])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_settings_are_numbers_that_json_can_hold(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=name):
        Settings().replace(**{name: value})
    # Why: msgspec writes them as null, which for eta and log_ridge reads as "the default".
    assert json.loads(msgspec.json.encode({name: value})) == {name: None}


@pytest.mark.parametrize(
    ("name", "value"), [("passes", 0), ("kappa", 0.0), ("eta", 0.0), ("c0", -1.0), ("ask", "x"), ("editor", "rmoe")]
)
def test_settings_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=name):
        Settings().replace(**{name: value})
    assert msgspec.json.decode(msgspec.json.encode(Settings()), type=Settings) == Settings()
