"""A batch's shift does not depend on how its rows are cut into micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from lifelong_edit.bench import State
from lifelong_edit.editors.contract import Lesson, moved_by
from lifelong_edit.editors.ridge.editor import RidgeEditor
from lifelong_edit.facts import Fact
from lifelong_edit.stores.tensors import materialise
from lifelong_edit.tasks.causal import task as causal
from lifelong_edit.tracing import trace as tracing
from lifelong_edit.tracing.rows import Row
from lifelong_edit.tracing.trace import Trace
from tests.mathematics.conftest import MakeEditor, shift_of

TOLERANCE = 1e-4
"""Relative, Frobenius. Padding changes the shapes of float32 products, hence their rounding (6e-8 a sum), through
four layers forward and back and one solve: 1.1e-6 to 1.5e-6 is found for each editor; other kernels may round more."""


@pytest.fixture
def state(make_editor: MakeEditor, news: list[Fact]) -> State:
    """After a first batch, so that P holds live keys and rehearsal rows are drawn."""
    first = make_editor(passes=1).learn(State(), Lesson(news[:5]))
    return moved_by(State(digest="one"), first, news[:5])


def shifts(editor: RidgeEditor, state: State, news: Sequence[Fact]) -> dict[str, np.ndarray]:
    """What the second batch changes."""
    return {n: materialise(s) for n, s in shift_of(editor.learn(state, Lesson(news[5:12]))).items()}


def apart(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """The largest relative difference of any module's shift."""
    return max(float(np.linalg.norm(one[n] - other[n]) / np.linalg.norm(other[n])) for n in one)


@pytest.mark.parametrize(
    ("editor", "ask"), [("gradient", "joint"), ("malmen", "joint"), ("malmen", "published"), ("ultraedit", "joint")]
)
def test_one_seven_and_sixty_four_give_the_same_shift(
    make_editor: MakeEditor,
    random_network: Callable[..., object],
    state: State,
    news: list[Fact],
    editor: str,
    ask: str,
) -> None:
    def run(size: int) -> dict[str, np.ndarray]:
        networks = random_network(ask, size=0.05) if editor == "malmen" else None
        eta = 1e-3 if editor == "ultraedit" else 2.0
        return shifts(make_editor(networks, editor=editor, ask=ask, micro_batch=size, eta=eta), state, news)

    whole = run(64)
    assert all(np.abs(s).max() > 1e-4 for s in whole.values())
    assert apart(run(1), whole) < TOLERANCE
    assert apart(run(7), whole) < TOLERANCE


def test_a_mean_over_the_micro_batch_is_noticed(
    make_editor: MakeEditor, state: State, news: list[Fact], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published code's habit: the loss averaged over the micro-batch, so that gradients depend on its size."""
    whole = causal.position_losses

    def mean(logits: torch.Tensor, batch: object, part: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
        losses, row = whole(logits, batch, part)  # type: ignore[arg-type]
        return losses / len(part), row

    monkeypatch.setattr(causal, "position_losses", mean)
    assert (
        apart(shifts(make_editor(micro_batch=7), state, news), shifts(make_editor(micro_batch=64), state, news))
        > 100 * TOLERANCE
    )


def test_the_order_of_micro_batches_does_not_matter(
    make_editor: MakeEditor, state: State, news: list[Fact], monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = shifts(make_editor(micro_batch=7), state, news)
    cut = tracing.by_length

    def backwards(lengths: Sequence[int], size: int) -> list[list[int]]:
        return [part[::-1] for part in cut(lengths, size)][::-1]

    monkeypatch.setattr(tracing, "by_length", backwards)
    assert apart(shifts(make_editor(micro_batch=7), state, news), usual) < TOLERANCE


def test_rows_that_lose_their_facts_are_noticed(
    make_editor: MakeEditor, state: State, news: list[Fact], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and gradients sorted apart, as where edit and rephrase rows are each sorted by length."""
    usual = shifts(make_editor(), state, news)
    right = tracing._in_row_order

    def torn(keys: dict[str, list[torch.Tensor]], grads: dict[str, list[torch.Tensor]], *rest: torch.Tensor) -> Trace:
        whole = right(keys, grads, *rest)
        whole.keys = {n: k.roll(1, 0) for n, k in whole.keys.items()}
        return whole

    monkeypatch.setattr(tracing, "_in_row_order", torn)
    assert apart(shifts(make_editor(), state, news), usual) > 100 * TOLERANCE


def test_the_same_batch_again_gives_the_same_bytes(make_editor: MakeEditor, state: State, news: list[Fact]) -> None:
    one, other = shifts(make_editor(), state, news), shifts(make_editor(), state, news)
    assert all(one[n].tobytes() == other[n].tobytes() for n in one)
