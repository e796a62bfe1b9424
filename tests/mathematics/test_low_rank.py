"""Grams kept by their rows: every solve through them against the same one with the gram multiplied out.

1e-8 is what is asked for; what float64 leaves is about the condition of the system (10⁶ here) times 10⁻¹⁶.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lifelong_edit.bench import Bench, State, prepare
from lifelong_edit.editors.contract import Given, Lesson
from lifelong_edit.editors.registry import rule_of
from lifelong_edit.editors.ridge.passes import SumSystem
from lifelong_edit.errors import StepRefusedError
from lifelong_edit.facts import Fact, Probe
from lifelong_edit.models import LoadedModel, load_model
from lifelong_edit.numerics.located import equality, free_directions, projected, rank_one, ridge, ridge_among
from lifelong_edit.numerics.lowrank import LowRank, few_enough, joined
from lifelong_edit.numerics.solver import Scaled, Solution, factorise, solve, solve_backward
from lifelong_edit.stores import Shift, materialise
from tests.mathematics.conftest import BASIC, editor_of, shift_of

WIDTH, OUT = 120, 7
WIDTH_OF_TINY = 128


def gram(rank: int = 20, gone: int = 0, spread: float = 1e3) -> LowRank:
    """A steep spectrum on top of a small diagonal, some of it taken out again."""
    g = torch.Generator().manual_seed(rank + gone)
    steep = torch.logspace(0, -2, rank, dtype=torch.float64)[:, None] * spread
    rows = steep * torch.randn(rank, WIDTH, dtype=torch.float64, generator=g) / WIDTH**0.5
    found = LowRank(rows, 0.01 + torch.rand(WIDTH, dtype=torch.float64, generator=g))
    return found.minus(rows[:gone] * 0.7) if gone else found


def rows_of(count: int = 15) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(count)
    draws = [torch.randn(count, width, dtype=torch.float64, generator=g) for width in (WIDTH, OUT)]
    return draws[0], draws[1], 0.1 + torch.rand(count, dtype=torch.float64, generator=g)


def off(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


class Factorised(TorchDispatchMode):
    """The widths of the matrices that are factorised inside."""

    def __init__(self) -> None:
        super().__init__()
        self.widths: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "cholesky_ex" in str(func) or "eigh" in str(func):
            self.widths.add(args[0].shape[-1])
        return func(*args, **(kwargs or {}))


class Largest(TorchDispatchMode):
    """How many numbers the largest tensor has that is made inside."""

    found = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple) else (made,):
            if isinstance(tensor, Tensor):
                self.found = max(self.found, tensor.numel())
        return made


@pytest.mark.parametrize("gone", [0, 5])
@pytest.mark.parametrize("lam", [1.0, 1e-3])
def test_a_solve_is_the_dense_one(gone: int, lam: float) -> None:
    keys, values, weights = rows_of()
    held = gram(gone=gone)
    wanted = solve(keys, values, weights, held.dense(), lam)
    for kept in (None, factorise(held, lam)):
        found = solve(keys, values, weights, held, lam, kept)
        assert isinstance(found.kept, Scaled)
        assert off(found.shift, wanted.shift) < 1e-8
        assert off(found.influence(), wanted.influence()) < 1e-8
        assert off(found.influence() @ values, found.shift) < 1e-8
        right = torch.randn(WIDTH, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        assert off(found.inverse_on(right), wanted.inverse_on(right)) < 1e-8
        slope = torch.randn(WIDTH, OUT, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        (by_value, by_ridge), (value, by) = solve_backward(found, slope), solve_backward(wanted, slope)
        assert off(by_value, value) < 1e-8 and by_ridge == pytest.approx(by, rel=1e-7)
    assert off(solve(keys, values, weights, held, 1.01 * lam).shift, wanted.shift) > 1e-7


def test_no_matrix_of_the_width_squared_is_made() -> None:
    keys, values, weights = rows_of()

    def largest(held: Any) -> int:
        with Largest() as watched:
            found: Solution = solve(keys, values, weights, held, 1.0)
            found.influence()
            ridge(keys, held)
        return watched.found

    held = gram(gone=3)
    dense = held.dense()
    assert largest(held) <= WIDTH * (20 + 15)
    assert largest(dense) >= WIDTH**2


def test_what_cannot_be_solved_is_refused() -> None:
    keys, values, weights = rows_of()
    held = gram()
    with pytest.raises(StepRefusedError, match="singular"):
        solve(keys, values, weights, LowRank(held.rows, torch.zeros(WIDTH, dtype=torch.float64)), 0.0)
    with pytest.raises(StepRefusedError, match="singular"):  # more taken out than was there
        solve(keys, values, weights, held.minus(held.rows * 1.1), 0.0)
    with pytest.raises(StepRefusedError, match="not finite"):
        solve(keys, values, weights, LowRank(held.rows * torch.inf, held.rest), 1.0)


@pytest.mark.parametrize("parts", [1, 4, 12])
def test_sums_gather_rows_until_they_are_too_many(parts: int) -> None:
    """Twelve parts are 96 rows and a factor of 20: more than half of 120."""
    chunks = [rows_of(8 + i) for i in range(parts)]
    one, other = SumSystem({"m": gram()}, {"m": 1.0}), SumSystem({"m": gram().dense()}, {"m": 1.0})
    for keys, values, weights in chunks:
        one.take("m", keys, values, weights)
        other.take("m", keys, values, weights)
    assert ("m" in one._few) == few_enough(20 + sum(len(c[0]) for c in chunks), WIDTH) == (parts < 12)
    assert off(one.shift("m"), other.shift("m")) < 1e-8


def test_the_rules_that_locate_solve_the_same() -> None:
    keys, _, _ = rows_of(6)
    held, earlier = gram(), LowRank(rows_of(9)[0], torch.zeros(WIDTH, dtype=torch.float64))
    dense, both = held.dense(), joined(held, earlier)
    assert off(joined(dense, earlier), both.dense() if isinstance(both, LowRank) else both) < 1e-14  # type: ignore[arg-type]
    assert off(rank_one(keys[:1], keys[1:2], held), rank_one(keys[:1], keys[1:2], dense)) < 1e-8
    assert off(ridge(keys, both), ridge(keys, dense + earlier.dense())) < 1e-8
    assert off(equality(keys, held, 0.1), equality(keys, dense, 0.1)) < 1e-8
    chosen = torch.arange(WIDTH) % 3 > 0
    assert off(ridge_among(keys, both, chosen), ridge_among(keys, dense + earlier.dense(), chosen)) < 1e-8


@pytest.mark.parametrize(("threshold", "share"), [(None, 0.002), (2.0, 1.0)])
def test_a_projection_is_known_by_what_it_leaves_out(threshold: float | None, share: float) -> None:
    keys, held, earlier = rows_of(6)[0], gram(), rows_of(9)[0]
    by_rows, whole = (free_directions(g, threshold, share) for g in (held, held.dense()))
    assert by_rows.complement and not whole.complement
    assert by_rows.rank == whole.rank < WIDTH
    assert by_rows.left == pytest.approx(whole.left, rel=1e-8)
    assert off(by_rows.on(keys), whole.on(keys)) < 1e-8
    q = LowRank(earlier, torch.zeros(WIDTH, dtype=torch.float64))
    wanted = projected(keys, whole, q.dense(), 3.0)
    for kept, before in ((by_rows, q), (whole, q), (by_rows, q.dense())):
        assert off(projected(keys, kept, before, 3.0), wanted) < 1e-8
    assert off(projected(keys, by_rows, None, 3.0), projected(keys, whole, None, 3.0)) < 1e-8


def test_what_takes_up_more_than_half_is_left_to_the_matrix() -> None:
    flat = LowRank(gram().rows * 0, torch.ones(WIDTH, dtype=torch.float64))
    assert not free_directions(flat, None, 0.1).complement


def test_a_bench_holds_still_by_rows(loaded: LoadedModel, sentences: list[str], probes: list[Probe]) -> None:
    """The same P, in the same order whatever came before, and whole where rows are many."""
    settings = BASIC.replace(gram_rank=4)
    fixed = prepare(loaded, settings, text=[" ".join(sentences * 20)], preserve=probes)
    editor = editor_of(Bench(loaded, settings, fixed))
    bench, s = editor.bench, editor.settings
    name, keys = bench.names[0], {str(i): k for i, k in enumerate(bench.preserved.keys[:2])}
    found = editor.preservation.gram(name, s, 0.0, keys, frozenset())
    turned = editor.preservation.gram(name, s, 0.0, dict(reversed(keys.items())), frozenset())
    assert isinstance(found, LowRank) and isinstance(turned, LowRank)
    assert found.rows.numpy().tobytes() == turned.rows.numpy().tobytes()
    many = editor.preservation.gram(name, s, 0.0, keys, frozenset(), coming=10_000)
    assert isinstance(many, Tensor) and off(found.dense(), many) < 1e-12


OPTIONS: dict[str, dict[str, Any]] = {
    "gradient": {"passes": 2, "more_passes": 0, "preserved": 2, "rehearse": 1, "phrasings": 0},
    "search": {"rounds": 2, "more_rounds": 0, "preserved": 4, "contexts": 2, "rehearse": 0},
    "alphaedit": {"contexts": 2, "steps": 2, "free": 0.5},
}
LOCATING = {"contexts": 2, "steps": 2}


@pytest.fixture(scope="module")
def at_subjects(tiny_gpt2: Path) -> LoadedModel:
    """The tiny GPT-2, edited at subjects."""
    return load_model(str(tiny_gpt2), modules=["1-2@subject"])


@pytest.mark.parametrize("rule", ["gradient", "search", "rome", "alphaedit", "memit-seq", "emmet", "nse"])
def test_a_batch_is_the_same_either_way(
    rule: str,
    at_subjects: LoadedModel,
    sentences: list[str],
    probes: list[Probe],
    news: list[Fact],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A second batch, with the first one's facts held; by rows no Cholesky factor has the width of the matrix."""
    kind = rule_of(rule)
    one = {"modules": ("transformer.h.2.mlp.c_proj@subject",)} if rule in ("rome", "emmet") else {}
    model = load_model(at_subjects.source, modules=list(one["modules"])) if one else at_subjects
    settings = kind.settings(text_tokens=3000, micro_batch=8, gram_rank=4, editor=rule, **OPTIONS.get(rule, LOCATING))
    text, few = [" ".join(sentences * 20)], probes[:4]
    own = kind.fix(model, settings, Given(text=text, preserve=few))
    fixed = prepare(model, settings, text=text, preserve=few, rule=own)
    made = kind.make(Bench(model, settings, fixed))
    first = made.learn(State(), Lesson(news[:1]))
    state = State(live={news[0].digest: news[0]}, keys=first.keys())

    def learned() -> tuple[Mapping[str, Shift], set[int]]:
        with Factorised() as watched:
            change = kind.make(Bench(model, settings, fixed)).learn(state, Lesson(news[1:2]))
        return shift_of(change), watched.widths

    by_rows, small = learned()
    monkeypatch.setattr("lifelong_edit.numerics.textgram.TextGrams.low_rank", lambda *_: None)
    whole, large = learned()
    assert WIDTH_OF_TINY not in small and WIDTH_OF_TINY in large
    for name, wanted in whole.items():
        assert off(*(torch.from_numpy(materialise(s)).double() for s in (by_rows[name], wanted))) < 1e-4
