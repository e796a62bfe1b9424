"""RLEdit: MALMEN's network behind a normaliser that moves, against UltraEdit and against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lifelong_edit.bench import Bench, Fixed, State
from lifelong_edit.editors.contract import Lesson, moved_by
from lifelong_edit.editors.ridge.targets import Moments, Seen
from lifelong_edit.editors.rledit.rule import MovingTargets, with_networks
from lifelong_edit.editors.rledit.settings import RLSettings
from lifelong_edit.editors.ultraedit.moments import grouped
from lifelong_edit.editors.ultraedit.rule import NormalisedTargets
from lifelong_edit.facts import Fact
from lifelong_edit.models import LoadedModel
from lifelong_edit.tracing.rows import fact_rows
from lifelong_edit.tracing.trace import trace
from tests.mathematics.test_mend import networks_for

SETTINGS = RLSettings(micro_batch=8, text_tokens=3000, preserved=4, passes=1)


@pytest.fixture
def seen(loaded: LoadedModel, news: list[Fact]) -> Seen:
    """What some facts show at the base weights."""
    traced = trace(loaded, fact_rows(loaded, news[:6], 0), 8)
    return Seen(traced.keys, traced.gradients)


@pytest.mark.parametrize("centre", [True, False])
def test_at_the_identity_it_is_ultraedit_but_for_one_factor(loaded: LoadedModel, seen: Seen, centre: bool) -> None:
    """D = −η (k·k̂) ĝ here and −η (k̂·k̂) ĝ there, with the same moments of earlier rows and these."""
    networks = networks_for(loaded, "rledit")
    for network in networks.networks.values():
        network.log_step.fill_(np.log(0.01))  # type: ignore[operator, union-attr]
    moving = MovingTargets(networks, loaded.modules, centre)
    ultra = NormalisedTargets(0.01, centre, grouped(loaded.modules, "shape"))
    earlier = ultra.ready(Seen({n: k[:4] for n, k in seen.keys.items()},
                               {n: g[:4] for n, g in seen.gradients.items()}), {}).moments  # fmt: skip
    ours, theirs = moving.ready(seen, earlier), ultra.ready(seen, earlier)
    assert {n: a.tobytes() for n, a in ours.moments.items()} == {n: a.tobytes() for n, a in theirs.moments.items()}
    for module in loaded.modules:
        keys, gradients = seen.keys[module.name], seen.gradients[module.name]
        name, width = f"{module.d_in}x{module.d_out}", module.d_in
        deviation = np.sqrt(ours.moments[f"{name}/squares"] / (ours.moments[f"{name}/count"] - 1)) + 1e-8
        key = (keys.double().numpy() - ours.moments[f"{name}/mean"][:width]) / deviation[:width]
        raw = (keys.double().numpy() * key).sum(1, keepdims=True)
        wanted = theirs.ask(module.name, keys, gradients).double().numpy() / (key**2).sum(1, keepdims=True) * raw
        found = ours.ask(module.name, keys, gradients).double().numpy()
        assert np.linalg.norm(found - wanted) < 1e-3 * np.linalg.norm(wanted)
        assert np.linalg.norm(theirs.ask(module.name, keys, gradients).numpy() - wanted) > 0.1 * np.linalg.norm(wanted)


def test_a_row_without_gradient_asks_for_nothing_where_all_is_held(loaded: LoadedModel, seen: Seen) -> None:
    networks = networks_for(loaded, "rledit", size=0.2)
    asker = MovingTargets(networks, loaded.modules, False).ready(seen, {})
    published = MovingTargets(networks, loaded.modules, True).ready(seen, {})
    for name, keys in seen.keys.items():
        none: Tensor = torch.zeros_like(seen.gradients[name])
        assert not bool(asker.ask(name, keys, none).any())
        assert bool(published.ask(name, keys, none).any())
        assert bool(asker.ask(name, keys, seen.gradients[name]).any())


def test_the_normaliser_goes_on_from_its_training(loaded: LoadedModel, fixed: Fixed, news: list[Fact]) -> None:
    """In NumPy: rows of the training, then of batch after batch, each at the weights that it met."""
    networks = networks_for(loaded, "rledit")
    bench = Bench(loaded, SETTINGS, fixed)
    counts = dict.fromkeys(networks.networks, 0)
    learned = trace(loaded, fact_rows(loaded, news[8:], 0), 8)
    for name, keys in learned.keys.items():
        networks.of(name)[0].running.take(keys, learned.gradients[name])
        networks.of(name)[0].log_step.fill_(-6)
        counts[f"{keys.shape[1]}x{learned.gradients[name].shape[1]}"] += len(keys)
    editor, state = with_networks(bench, networks), State()
    for batch in (news[:3], news[3:6]):
        with loaded.at(state.shifts):
            met = trace(loaded, fact_rows(loaded, batch, 0), 8)
        before: Moments = state.parts.get("moments", {})
        state = moved_by(state, editor.learn(state, Lesson(batch)), batch)
        for shape in counts:
            own = [n for n in met.keys if f"{met.keys[n].shape[1]}x{met.gradients[n].shape[1]}" == shape]
            counts[shape] += sum(len(met.keys[n]) for n in own)
            assert float(np.asarray(state.parts["moments"][f"{shape}/count"])) == counts[shape]
            if before:
                rows = torch.cat([torch.cat([met.keys[n], met.gradients[n]], -1) for n in own]).double().numpy()
                total = np.asarray(before[f"{shape}/mean"]) * np.asarray(before[f"{shape}/count"]) + rows.sum(0)
                wanted = total / counts[shape]
                np.testing.assert_allclose(state.parts["moments"][f"{shape}/mean"], wanted, rtol=1e-3, atol=1e-5)
    again = editor.relearn(news[:6])
    assert any(bool(w.any()) for w in again.weights({}).values())
