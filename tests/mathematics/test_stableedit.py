"""StableEdit: gradients whitened by their running covariance, against NumPy and against UltraEdit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from lifelong_edit.bench import Bench, Fixed, State
from lifelong_edit.editors.contract import Given, Lesson
from lifelong_edit.editors.registry import rule_of
from lifelong_edit.editors.ridge.targets import Asker, Moments, Seen
from lifelong_edit.editors.stableedit.rule import WhitenedTargets
from lifelong_edit.editors.stableedit.settings import StableSettings
from lifelong_edit.editors.ultraedit.rule import NormalisedTargets
from lifelong_edit.errors import UsageError
from lifelong_edit.facts import Fact
from lifelong_edit.models import LoadedModel
from lifelong_edit.tracing.rows import fact_rows
from lifelong_edit.tracing.trace import trace
from tests.mathematics.conftest import BASIC, MakeEditor, editor_of, moments_of

Rows = tuple[Tensor, Tensor]
MIX = torch.tensor([[1.0, 0.6, 0.0], [0.0, 0.3, 0.2], [0.0, 0.0, 2.0]])


def rows(seed: int, n: int) -> Rows:
    """Keys (n, 5), and gradients (n, 3) whose coordinates go together."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 5, generator=g) + 3, torch.randn(n, 3, generator=g) @ MIX + 0.5


def ready(batch: Rows, state: Moments, centre: bool = True, **changes: Any) -> Asker:
    """The rule made ready on a batch of one module."""
    targets = WhitenedTargets(0.01, centre, lambda _: "5x3", StableSettings(**changes), {})
    return targets.ready(Seen({"m": batch[0]}, {"m": batch[1]}), state)


def judged(batch: Rows, whole: np.ndarray, centre: bool, floor: float) -> np.ndarray:
    """−η ‖k̂‖² (g − mean) Σ^(−1/2), in NumPy, from all rows [k; g] so far."""
    keys, gradients = (part.double().numpy() for part in batch)
    mean, deviation = whole.mean(0), whole.std(0, ddof=1)
    own = whole[:, 5:] - mean[5:]
    values, vectors = np.linalg.eigh(own.T @ own / (len(whole) - 3 - 1))
    root = vectors @ np.diag(np.maximum(values, floor) ** -0.5) @ vectors.T
    key = (keys - mean[:5]) / deviation[:5]
    found: np.ndarray = -0.01 * (key**2).sum(1, keepdims=True) * ((gradients - (mean[5:] if centre else 0)) @ root)
    return found


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("floor", [1e-6, 0.5])
def test_the_rule_is_the_formula(centre: bool, floor: float) -> None:
    """With the moments of earlier batches, one after the other, and this one."""
    state: Moments = {}
    batches = [rows(seed, size) for seed, size in ((1, 4), (2, 9), (3, 6))]
    for batch in batches:
        asker = ready(batch, state, centre, floor=floor)
        state = asker.moments
    whole = np.concatenate([torch.cat(b, -1).double().numpy() for b in batches])
    own = whole[:, 5:] - whole[:, 5:].mean(0)
    np.testing.assert_allclose(state["5x3/scatter"], own.T @ own, rtol=1e-9, atol=1e-9)
    wanted = judged(batches[-1], whole, centre, floor)
    np.testing.assert_allclose(asker.ask("m", *batches[-1]).numpy(), wanted, rtol=1e-3, atol=1e-5)
    # The judge can tell: of the last batch alone, and with another floor, it is another.
    assert not np.allclose(judged(batches[-1], whole[-6:], centre, floor), wanted, rtol=1e-2)
    assert not np.allclose(judged(batches[-1], whole, centre, 0.5 - floor), wanted, rtol=1e-2)


def test_what_is_whitened_has_the_covariance_of_noise() -> None:
    """ĜᵀĜ/(n − d_out − 1) = I of the rows seen; standardised it is the correlation."""
    keys, gradients = rows(4, 40)
    asked = ready((keys, gradients), {}).ask("m", keys, gradients).double()
    key = (keys - keys.mean(0)) / keys.std(0)
    white = (asked / (-0.01 * key.square().sum(1, keepdim=True))).numpy()
    np.testing.assert_allclose(white.T @ white / (40 - 3 - 1), np.eye(3), atol=1e-4)


@pytest.mark.parametrize("count", [4, 5])
def test_with_too_few_rows_it_is_ultraedit(count: int) -> None:
    """Up to d_out + 1 rows exactly; with one more it is not."""
    batch = rows(5, count)
    plain = NormalisedTargets(0.01, True, lambda _: "5x3").ready(Seen({"m": batch[0]}, {"m": batch[1]}), {})
    alike = torch.equal(ready(batch, {}).ask("m", *batch), plain.ask("m", *batch))
    assert alike == (count == 4)


def test_published_is_one_solve_with_ridge_ten(make_editor: MakeEditor, news: list[Fact]) -> None:
    editor = make_editor(editor="stableedit", ask="published", eta=None)
    assert set(editor.ridges().values()) == {10.0}
    assert set(make_editor(editor="stableedit", ridge=3.0).ridges().values()) == {3.0}
    report = editor.learn(State(), Lesson(news[:4])).report
    assert report["passes"] == 1


def test_warm_up_facts_leave_their_moments_and_nothing_else(
    loaded: LoadedModel, fixed: Fixed, news: list[Fact], tmp_path: Path
) -> None:
    """What a first batch remembers is of both, in NumPy; solved again it begins with them as well."""
    path = tmp_path / "warm.jsonl"
    path.write_text("".join(json.dumps({k: v for k, v in msgspec.structs.asdict(f).items() if v}) + "\n"
                            for f in news[6:]))  # fmt: skip
    rule = rule_of("stableedit")
    given = msgspec.structs.asdict(BASIC) | {"editor": "stableedit", "warm_up": str(path), "eta": 1e-3}
    settings = StableSettings(**given)
    rule.require(settings, Given())
    kept = rule.fix(loaded, settings, Given())
    editor = editor_of(Bench(loaded, settings, replace(fixed, rule=kept)))
    traced = trace(loaded, fact_rows(loaded, [*news[6:], *news[:3]], settings.phrasings), 8)
    for change in (editor.learn(State(), Lesson(news[:3])), editor.relearn(news[:3])):
        found = moments_of(change)
        for shape in {f"{m.d_in}x{m.d_out}" for m in loaded.modules}:
            own = [m.name for m in loaded.modules if f"{m.d_in}x{m.d_out}" == shape]
            seen = torch.cat([torch.cat([traced.keys[n], traced.gradients[n]], -1) for n in own]).double().numpy()
            assert float(found[f"{shape}/count"]) == len(seen)
            np.testing.assert_allclose(found[f"{shape}/mean"], seen.mean(0), rtol=1e-4, atol=1e-6)
    assert set(change.further({}, {f.digest for f in news})) == {"moments"}
    cold = editor_of(Bench(loaded, settings, fixed))
    assert moments_of(cold.learn(State(), Lesson(news[:3]))).keys() == found.keys()
    assert float(moments_of(cold.learn(State(), Lesson(news[:3])))[f"{shape}/count"]) < float(found[f"{shape}/count"])


def test_a_warm_up_without_facts_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(UsageError, match="found no fact in"):
        rule_of("stableedit").require(StableSettings(warm_up=str(empty)), Given())
    with pytest.raises(UsageError, match="found no file"):
        rule_of("stableedit").require(StableSettings(warm_up=str(tmp_path / "none.jsonl")), Given())
