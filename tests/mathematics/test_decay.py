"""`reconsolidation_decay`: the share of the shift that each pass of a reconsolidation but the first lets go."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lifelong_edit.editors.ridge.editor import RidgeEditor
from lifelong_edit.facts import Fact
from lifelong_edit.tracing.rows import fact_rows, subjects_of
from lifelong_edit.tracing.trace import trace
from tests.mathematics.conftest import MakeBench, MakeEditor, whole_of

PASSES = 5


def unasked(editor: RidgeEditor, facts: list[Fact]) -> tuple[str, Tensor]:
    """A module, and functionals of its ΔW, (n, d_in), that no pass over the facts can change.

    Of the lowest module, whose keys K stay the same. From A S = Kᵀdiag(w)D follows uᵀAS = 0 for every u with Ku = 0,
    and Au = (P + λI)u.
    """
    bench, s = editor.bench, editor.settings
    name = bench.names[0]
    rows = fact_rows(bench.loaded, facts, s.phrasings)
    keys = trace(bench.loaded, rows, 8, gradients=False).keys[name].double()
    nothing = torch.linalg.svd(keys, full_matrices=True).Vh[len(keys) :]
    assert len(nothing) > 10
    held = editor.preservation.gram(name, s, s.reconsolidation_keys, {}, subjects_of(facts))
    return name, nothing @ (held + editor.ridge(name) * torch.eye(len(held), dtype=torch.float64))


@pytest.fixture
def start(make_bench: MakeBench) -> dict[str, Tensor]:
    """A shift of no meaning to begin with."""
    g = torch.Generator().manual_seed(2)
    return {m.name: torch.randn(m.d_in, m.d_out, generator=g) * 0.02 for m in make_bench().loaded.modules}


@pytest.mark.parametrize("decay", [0.0, 0.02, 0.3])
def test_what_no_row_asks_for_falls_by_that_share_in_each_pass_but_the_first(
    make_editor: MakeEditor, news: list[Fact], start: dict[str, Tensor], decay: float
) -> None:
    """To the power of passes − 1, exactly: float64 sums, rounded to float32 once a pass."""
    editor = make_editor(
        reconsolidation_passes=PASSES, reconsolidation_gain=0.0, reconsolidation_eta=0.08, phrasings=1,
        reconsolidation_preserved=0, reconsolidation_decay=decay,
    )  # fmt: skip
    name, watched = unasked(editor, news[:3])
    before = watched @ start[name].double()
    solved = editor.relearn(news[:3], start=start)
    shifts = whole_of(solved)
    assert solved.report["passes"] == PASSES
    after = watched @ shifts[name].double()
    wanted = (1 - decay) ** (PASSES - 1) * before
    assert float((after - wanted).norm() / before.norm()) < 1e-5
    # What rows do ask for moves in the same passes: the functional is not blind.
    assert float((shifts[name] - (1 - decay) ** (PASSES - 1) * start[name]).norm()) > 1e-3


def test_a_share_let_go_in_each_pass_keeps_the_shift_small(make_editor: MakeEditor, news: list[Fact]) -> None:
    """From the base, as many passes: without decay what was once asked for stays, useful or not."""
    norms = []
    for decay in (0.0, 0.05, 0.2):
        editor = make_editor(
            reconsolidation_passes=12, reconsolidation_gain=0.0, reconsolidation_eta=0.2, reconsolidation_decay=decay
        )
        found = editor.relearn(news[:3]).report["norm"]
        assert isinstance(found, dict)
        norms.append(sum(found.values()))
    assert norms[2] < norms[1] < norms[0]


def test_a_reconsolidation_is_joint_whatever_batches_are(make_editor: MakeEditor, news: list[Fact]) -> None:
    """A store that solves batches as published holds nothing still in them; solving again, it does."""
    settings: dict[str, Any] = {"reconsolidation_passes": 2, "reconsolidation_eta": 0.2}
    published, joint = (make_editor(ask=ask, **settings).relearn(news[:4]) for ask in ("published", "joint"))
    assert published.report["rows"] == joint.report["rows"]
    for name, shift in whole_of(joint).items():
        assert torch.equal(whole_of(published)[name], shift)
    assert any(bool(shift.any()) for shift in whole_of(joint).values())
