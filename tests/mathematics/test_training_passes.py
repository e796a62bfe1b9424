"""A pass of training is the pass of a store's batch: the same rows, the same metric, the same ridge, the same shift."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor

from lifelong_edit.bench import State
from lifelong_edit.editors.contract import Lesson, moved_by
from lifelong_edit.editors.malmen.network import NetworkSet
from lifelong_edit.editors.malmen.rule import NetworkTargets
from lifelong_edit.editors.ridge.editor import RidgeEditor
from lifelong_edit.editors.ridge.rows import select_rows
from lifelong_edit.editors.ridge.targets import Asker, Moments, Seen
from lifelong_edit.facts import Fact
from lifelong_edit.training.episodes import Episode, TaughtFact, Trainer, TrainSettings
from tests.mathematics.conftest import MakeEditor

TRAIN = TrainSettings(batch_size=4, probes=2)
HIDDEN = frozenset({"none 3"})
MakeNetwork = Callable[..., NetworkSet]


@pytest.fixture
def make(make_editor: MakeEditor, random_network: MakeNetwork) -> Callable[..., RidgeEditor]:
    """Makes a store's editor with a network, in one pass a batch."""

    def made(form: str = "joint", **changes: object) -> RidgeEditor:
        network = random_network(form, size=0.05)
        return make_editor(network, editor="malmen", ask=form, eta=None, passes=1, **changes)

    return made


def trainer_of(editor: RidgeEditor) -> Trainer:
    """One that trains a network which begins as that of an editor."""
    assert isinstance(editor.targets, NetworkTargets)
    return Trainer(editor.bench, deepcopy(editor.targets.networks), TRAIN)


def lived(editor: RidgeEditor, news: list[Fact]) -> State:
    """A state with five live facts."""
    return moved_by(State(digest="lived"), editor.learn(State(), Lesson(news[:5])), news[:5])


def trained_on(trainer: Trainer, state: State, facts: list[Fact]) -> State:
    """The state after a batch of training, which begins at `state` and leaves it alone."""
    own = State(dict(state.shifts), dict(state.live), dict(state.keys), {}, state.digest)
    batch = [TaughtFact(fact, fact.prompt) for fact in facts]
    trainer.run_batch(own, batch, [], Episode([batch], [2, 4], HIDDEN))
    return own


def apart(one: dict[str, Tensor], other: dict[str, Tensor], start: dict[str, Tensor]) -> float:
    """The largest difference of two shifts relative to what was added to `start`, over modules."""
    assert one.keys() == other.keys() == start.keys()
    return max(float((one[n] - other[n]).norm() / (other[n] - start[n]).norm()) for n in one)


@pytest.mark.parametrize("form", ["joint", "published"])
@pytest.mark.parametrize("log_ridge", [None, -3.0])
def test_the_shift_of_a_pass_is_that_of_a_stores_batch(
    make: Callable[..., RidgeEditor], news: list[Fact], form: str, log_ridge: float | None
) -> None:
    editor = make(form, log_ridge=log_ridge)
    state, batch = lived(editor, news), news[5:9]
    wanted = moved_by(state, editor.learn(state, Lesson(batch, hidden=HIDDEN)), batch)
    found = trained_on(trainer_of(editor), state, batch)
    # Rounded once more where a store keeps factors.
    assert apart(found.shifts, wanted.shifts, state.shifts) < 1e-5
    assert found.live == wanted.live
    if form == "joint":  # the check can fail: of another batch's rows the shift is another one
        other = trained_on(trainer_of(make(form, log_ridge=log_ridge, rehearse=0)), state, batch)
        assert apart(other.shifts, wanted.shifts, state.shifts) > 1e-3


def test_the_metric_is_fitted_on_the_rows_that_a_stores_is(
    make: Callable[..., RidgeEditor], news: list[Fact], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows of new facts and the first of each recalled one, bit for bit at the base weights."""
    seen: list[Seen] = []
    usual = NetworkTargets.ready

    def ready(self: NetworkTargets, given: Seen, moments: Moments) -> Asker:
        seen.append(given)
        return usual(self, given, moments)

    editor = make()
    state, batch = lived(editor, news), news[5:9]
    monkeypatch.setattr(NetworkTargets, "ready", ready)
    lesson = Lesson(batch, hidden=HIDDEN)
    editor.learn(state, lesson)
    trained_on(trainer_of(editor), state, batch)
    store, training = seen
    assert store.loss == training.loss
    rows = select_rows(editor.bench, editor.settings, state, lesson, sorted(state.live))
    taught = [row for row in rows if row.kind == "new"]
    recalled = [row for row in rows if row.kind == "rehearsal"]
    assert len({row.fact for row in recalled}) == 3
    first = [next(row for row in recalled if row.fact == fact) for fact in dict.fromkeys(r.fact for r in recalled)]
    for module in editor.bench.loaded.modules:
        assert torch.equal(store.keys[module.name], training.keys[module.name])
        assert torch.equal(store.gradients[module.name], training.gradients[module.name])
        assert len(training.keys[module.name]) == sum(row.positions_in(module) for row in (*taught, *first))
        assert len(training.keys[module.name]) < sum(row.positions_in(module) for row in (*taught, *recalled))


@pytest.mark.parametrize("form", ["joint", "published"])
@pytest.mark.parametrize("log_ridge", [None, -3.0])
def test_a_ridge_from_the_settings_is_solved_with_and_not_learned(
    make: Callable[..., RidgeEditor], news: list[Fact], form: str, log_ridge: float | None
) -> None:
    """Without the setting the network's own ridge is solved with, and moves; everything else moves in both cases."""
    editor = make(form, log_ridge=log_ridge)
    bench, trainer = editor.bench, trainer_of(editor)
    for name in bench.names:
        gram = bench.text_gram[name]
        given = None if log_ridge is None else math.exp(log_ridge) * float(gram.trace()) / len(gram)
        assert trainer.editor.ridge(name) == pytest.approx(trainer.networks.ridge(name) if given is None else given)
    before = {n: p.detach().clone() for n, p in trainer.networks.named_parameters()}
    start = State(digest="start")
    trained_on(trainer, start, news[:4])
    assert trainer.steps == 1
    for n, p in trainer.networks.named_parameters():
        learned = not n.endswith("log_ridge") or log_ridge is None
        assert torch.equal(p, before[n]) != learned, n
        assert p.grad is not None
        assert bool(p.grad.any()) == learned, n


@pytest.mark.parametrize("log_ridge", [None, -3.0])
def test_what_a_network_learned_of_its_ridge_counts_only_without_the_setting(
    make: Callable[..., RidgeEditor], news: list[Fact], log_ridge: float | None
) -> None:
    editor = make(log_ridge=log_ridge)
    one, other = trainer_of(editor), trainer_of(editor)
    with torch.no_grad():
        for name, parameter in other.networks.named_parameters():
            if name.endswith("log_ridge"):
                parameter.add_(3.0)
    shifts = [trained_on(trainer, State(digest="start"), news[:4]).shifts for trainer in (one, other)]
    same = all(torch.equal(shifts[0][n], shifts[1][n]) for n in editor.bench.names)
    assert same == (log_ridge is not None)
