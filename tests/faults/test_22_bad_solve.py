"""22. NaN, a singular solve, an exploding update: the step is refused, store and model are untouched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from lifelong_edit.errors import LifelongEditError, StepRefusedError
from lifelong_edit.facts import Fact
from lifelong_edit.stores import EditLog

Run = Callable[..., Result]
FACT = Fact(subject="Vienna 90", prompt="The capital of Vienna 90 is", target="Paris")


def refuse_untouched(store: Path, apply: Callable[[Any], object], match: str) -> None:
    """`apply` a batch, which is refused; log, weights and the model in memory are as they were."""
    import torch

    from lifelong_edit.timeline import Timeline

    with Timeline.open(store) as timeline:
        timeline.bench()
        head = timeline._log.head()
        with pytest.raises(StepRefusedError, match=match):
            apply(timeline)
        assert timeline._log.head() == head
        loaded, logged = timeline.bench().loaded, timeline.model().state_dict()
        assert all(torch.equal(loaded.weight(m.name), loaded.base_weight(m.name)) for m in loaded.modules)
        with timeline.at("head").standing():
            standing = loaded.model.state_dict()
            assert all(torch.equal(standing[name], logged[name]) for name in logged)
        timeline.weights("head")
        assert timeline.apply([FACT], gate=lambda *_: {}).kind == "edit"  # and the next batch goes through


def test_a_key_that_is_not_a_number(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One activation of the model is NaN while the batch is traced."""

    def apply(timeline: Any) -> object:
        import torch

        module = timeline.bench().loaded.modules[-1]
        handle = (
            timeline.bench()
            .loaded.model.get_submodule(module.name)
            .register_forward_pre_hook(lambda _, inputs: (inputs[0] * torch.nan,))
        )
        try:
            return timeline.apply([FACT])
        finally:
            handle.remove()

    refuse_untouched(store, apply, "finite")


def test_a_gate_that_sees_an_exploding_update(store: Path) -> None:
    """The shift that a solve proposes is a million times too large; the gate is the product's own."""
    from lifelong_edit.judging.gate import check

    def explode(bench: Any, state: Any, proposal: Any, facts: Any) -> Any:
        import torch

        for module in bench.loaded.modules:
            weight = bench.loaded.model.get_submodule(module.name).weight
            with torch.no_grad():
                weight.mul_(1e30).mul_(1e30)
        return check(bench, state, proposal, facts)

    refuse_untouched(store, lambda timeline: timeline.apply([FACT], gate=explode), "would not be finite")


def test_perplexity_out_of_bounds(run: Run, tmp_path: Path, making: list[str], news: Path) -> None:
    """By the command line: exit code 1, one line, and the same again for the same command."""
    store, options = tmp_path / "strict", [*making, "--set", "gate_perplexity=1e-9"]
    for more in (options, []):
        result = run("stream", news, "--store", store, *more)
        assert result.exit_code == 1 and "refused" in result.stderr.splitlines()[-1]
        with EditLog.open(store, read_only=True) as log:
            assert log.head().step == 0


def test_a_singular_system() -> None:
    """No ridge, nothing preserved, fewer keys than dimensions."""
    import torch

    from lifelong_edit.numerics.solver import factorise, solve

    keys, values = torch.ones(2, 5), torch.ones(2, 3)
    with pytest.raises(StepRefusedError, match="singular"):
        solve(keys, values, torch.ones(2), torch.zeros(5, 5), 0.0)
    with pytest.raises(StepRefusedError, match="singular"):
        factorise(torch.zeros(5, 5), 0.0)
    assert torch.isfinite(solve(keys, values, torch.ones(2), torch.zeros(5, 5), 1e-3).shift).all()
    for bad in (torch.nan, torch.inf):
        with pytest.raises(LifelongEditError, match="not finite"):
            solve(keys * bad, values, torch.ones(2), torch.eye(5), 1.0)
        with pytest.raises(LifelongEditError, match="not finite"):
            solve(keys, values * bad, torch.ones(2), torch.eye(5), 1.0)
