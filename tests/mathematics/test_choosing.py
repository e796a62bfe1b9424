"""Choosing settings: a search that finds, stops, goes on where it was, and does not believe itself unchecked."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lifelong_edit.editors.registry import RULES, rule_of
from lifelong_edit.editors.ridge.settings import CHOSEN, GRID, Settings
from lifelong_edit.editors.tries import Number
from lifelong_edit.errors import BadInputError, UsageError
from lifelong_edit.facts import Fact
from lifelong_edit.models import LoadedModel
from lifelong_edit.training.choosing import Choice, Choosing, neighbour, search
from lifelong_edit.training.episodes import TrainSettings
from lifelong_edit.training.run import Scores, hold_out
from lifelong_edit.training.trials import TRIALS, Trial, Trials

SOLVE = Settings(
    editor="gradient",
    more_passes=0,
    passes=2,
    eta=0.6,
    preserved=4,
    rehearse=2,
    c0=50.0,
    text_tokens=2000,
    phrasings=1,
    micro_batch=8,
    reconsolidation_passes=2,
    reconsolidation_preserved=8,
)
TRAIN = TrainSettings(batch_size=4, validation_share=0.4)
# Enough values to have a choice: every trial takes a moment.
SMALL = {"eta": (0.6, 0.9), "passes": (1, 2), "reconsolidation_eta": (0.6, 0.9), "log_ridge": (-4.0, 6.0)}
FEW = Choosing(facts=4, batch_size=2, only=("eta", "passes", "reconsolidation_eta", "log_ridge"), least_gain=1e-6)
PLACES = ("Paris", "London", "Vienna", "Warsaw", "Belgrade")


@pytest.fixture(scope="module")
def facts() -> list[Fact]:
    return [
        Fact(
            subject=f"Vienna {i}",
            prompt=f"The capital of Vienna {i} is",
            target=PLACES[i % 5],
            target_true=PLACES[(i + 2) % 2],
            relation="capital",
            rephrases=(f"Vienna {i} has the capital", f"The seat of Vienna {i} is"),
        )
        for i in range(24)
    ]


@pytest.fixture
def choose(loaded: LoadedModel, facts: list[Fact], sentences: list[str], tmp_path: Path) -> Any:
    """Makes a choice in a folder; what it says is on its list `said`."""

    def make(out: str = "out", settings: Settings = SOLVE, train: TrainSettings = TRAIN, **changes: Any) -> Choice:
        said: list[str] = []
        choosing = msgspec.structs.replace(FEW, **changes)
        text = [" ".join(sentences * 20)]
        found = Choice(loaded, facts, text, tmp_path / out, settings, train, choosing, said.append)
        found.grid = {name: SMALL[name] for name in found.grid}
        found.said = said  # type: ignore[attr-defined]
        return found

    return make


def points(trials: list[Trial]) -> list[tuple[object, ...]]:
    return [(t.arm, t.check, t.changes, t.score, t.efficacy, t.locality) for t in trials]


# -- the search


def bowl(best: dict[str, float]) -> Any:
    """A score with one summit, the further away in steps of the grid the lower."""
    grid = {"a": (1, 2, 3, 4, 5), "b": (0.1, 0.3, 1.0, 3.0), "c": (0.0, 1.0)}

    def score(point: dict[str, Number]) -> float:
        return -sum(abs(math.atan(point[n]) - math.atan(best[n])) for n in grid)

    return grid, score


@pytest.mark.parametrize("a", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("b", [0.1, 1.0, 3.0])
def test_it_finds_the_summit_from_anywhere(a: int, b: float) -> None:
    grid, score = bowl({"a": a, "b": b, "c": 1.0})
    for start in itertools.product((1, 5), (0.1, 3.0), (0.0, 1.0)):
        found = search(dict(zip(grid, start, strict=True)), grid, score, 1e-9, 0)
        assert found == {"a": a, "b": b, "c": 1.0}


def test_it_stops_where_the_budget_does_and_makes_no_idle_changes() -> None:
    grid, score = bowl({"a": 5, "b": 3.0, "c": 1.0})
    asked: list[dict[str, Number]] = []

    def limited(point: dict[str, Number]) -> float | None:
        asked.append(point)
        return score(point) if len(asked) <= 3 else None

    start: dict[str, Number] = {"a": 1, "b": 0.1, "c": 0.0}
    assert search(start, grid, limited, 1e-9, 0) == {"a": 3, "b": 0.1, "c": 0.0}
    assert len(asked) == 4
    assert start["a"] == 1
    assert search(start, grid, lambda _: 0.5, 0.0, 0) == start  # a plateau
    slope = {v: 0.5 + 0.001 * v for v in grid["a"]}
    assert search(start, grid, lambda p: slope[int(p["a"])], 0.0, 0)["a"] == 5
    assert search(start, grid, lambda p: slope[int(p["a"])], 0.002, 0) == start


def test_it_looks_past_points_that_do_nothing_from_one_that_does_nothing() -> None:
    grid = {"a": (1, 2, 3, 4, 5), "b": (1, 2, 3)}
    asked: list[dict[str, Number]] = []

    def score(point: dict[str, Number]) -> float:
        asked.append(point)
        return {4: 0.8, 5: 0.6}.get(int(point["a"]), 0.3) - 0.1 * abs(point["b"] - 1)

    start: dict[str, Number] = {"a": 2, "b": 1}
    assert search(start, grid, score, 0.002, 0) == start
    asked.clear()
    assert search(start, grid, score, 0.002, 0, lambda p: score(p) < 0.5) == {"a": 4, "b": 1}
    assert [p["a"] for p in asked[:5]] == [2, 3, 2, 3, 4]  # the start, 3, both of them idle, and on
    assert {"a": 1, "b": 1} not in asked and {"a": 4, "b": 3} not in asked  # what does something stops it


def test_neighbours_of_values_off_the_grid() -> None:
    assert [neighbour((1, 2, 4), v, 1) for v in (0.5, 1, 3, 4)] == [1, 2, 4, None]
    assert [neighbour((1, 2, 4), v, -1) for v in (1, 1.5, 9)] == [None, 1, 4]


@pytest.mark.parametrize("rule", RULES)
def test_each_value_of_each_rule_is_one_that_a_store_may_have(rule: str) -> None:
    declared = rule_of(rule)
    assert bool(declared.tries.grid) == (not declared.network or rule == "malmen")  # the others' network is chosen for
    for name, values in declared.tries.grid.items():
        assert list(values) == sorted(set(values)), name
        for value in values:
            assert declared.settings(editor=rule, **{name: value})
        if name in declared.tries.relative:
            assert 1.0 in values and values[0] > 0  # the start has neighbours on both sides


def test_the_number_that_trials_are_judged_by() -> None:
    plain = Choosing(efficacy=1, generality=2, locality=1, perplexity=2, perplexity_free=0.03)
    assert plain.score(Scores(1.0, 0.5, 0.2), 1.02) == pytest.approx(2.2 / 4)
    assert plain.score(Scores(1.0, 0.5, 0.2), 1.13) == pytest.approx(2.2 / 4 - 0.2)
    assert plain.score(Scores(1.0, 0.5, math.nan), 1.0) == pytest.approx(2 / 3)
    assert plain.score(Scores(1.0, 1.0, 1.0), math.inf) == -1
    for wrong in ({"efficacy": -1.0}, {"efficacy": 0, "generality": 0, "locality": 0}, {"trials": 0}):
        with pytest.raises(UsageError, match="expected"):
            Choosing(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="expected some of eta"):
        Choosing(only=("seed",)).settled(SOLVE)


# -- trials on a model


def test_the_search_of_the_ridge_rules_is_what_it_was(choose: Any, facts: list[Fact], loaded: LoadedModel) -> None:
    """Values, order, start, how it asks, and the name of a search: files of older searches are gone on with."""
    order = (
        "eta reconsolidation_eta c0 subject_c0 preserved_keys passes preserved_weight preserved_step kappa log_ridge"
    )
    assert list(GRID) == [*order.split(), "trust", "reconsolidation_keys", "reconsolidation_passes"]
    assert [len(values) for values in GRID.values()] == [8, 7, 6, 4, 6, 7, 5, 4, 5, 6, 4, 3, 5]
    assert (GRID["eta"][3], GRID["c0"][2], GRID["log_ridge"][0], GRID["passes"][-1]) == (1.8, 300.0, -4.0, 8)
    choice = choose()
    assert (choice.arms, choice.asking.generated) == (("stream", "reconsolidation"), False)
    assert choice.start["eta"] == 0.6 and choice.start["log_ridge"] == pytest.approx(0.5605524, abs=1e-5)
    older = {"facts": 4, "batch_size": 2, "efficacy": 1.0, "generality": 1.0, "locality": 1.0, "perplexity": 2.0}
    older |= {"perplexity_free": 0.03, "reconsolidate": True, "least_gain": 1e-6, "only": list(FEW.only), "seed": 0}
    assert choice.choosing.encoded(choice.rule) == msgspec.json.encode(older)
    bounded = msgspec.structs.replace(choice.choosing, trials=7)
    assert bounded.encoded(choice.rule) == msgspec.json.encode(older)
    asked = msgspec.structs.replace(choice.choosing, generated=True)
    assert asked.encoded(choice.rule) != msgspec.json.encode(older)


def test_a_search_that_was_stopped_goes_the_same_way(choose: Any, tmp_path: Path) -> None:
    whole = choose("whole")
    chosen = whole.go(60)
    trials = whole.record.trials
    assert {t.arm for t in trials} == {"stream", "reconsolidation"}
    assert {name for t in trials for name in t.changes} == set(FEW.only)
    result = msgspec.json.decode((tmp_path / "whole" / CHOSEN).read_bytes())
    assert len(result["trials"]) == len(trials)
    assert chosen == SOLVE.replace(**result["changes"])
    assert {n: result["settings"][n] for n in FEW.only} == {n: getattr(chosen, n) for n in FEW.only}
    cut = Trials(identity=whole.record.identity, trials=trials[:5])
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / TRIALS).write_bytes(msgspec.json.encode(cut))
    later = choose("cut")
    assert later.go(60) == chosen
    assert points(later.record.trials) == points(trials)
    assert later.said[1].startswith("going on after 5 trials")
    again = choose("cut")
    assert again.go(60) == chosen
    assert points(again.record.trials) == points(trials)  # nothing was tried twice


def test_without_time_the_start_alone_is_tried(choose: Any) -> None:
    choice = choose()
    assert choice.go(0) == SOLVE
    assert [(t.arm, t.check, t.changes) for t in choice.record.trials] == [
        ("stream", False, {}),
        ("reconsolidation", False, {}),
        ("stream", True, {}),
        ("reconsolidation", True, {}),
    ]
    longer = choose()
    longer.go(60)
    assert points(longer.record.trials)[:4] == points(choice.record.trials)
    assert len(longer.record.trials) > 4


def test_an_arm_is_tried_again_only_where_the_setting_means_something(choose: Any) -> None:
    choice = choose(only=("passes", "reconsolidation_eta"))
    choice.go(60)
    for trial in choice.record.trials:
        other = {"stream": "reconsolidation_eta", "reconsolidation": "passes"}[trial.arm]
        assert other not in trial.changes
    alone = choose("alone", reconsolidate=False, only=("passes", "reconsolidation_eta"))
    alone.go(60)
    assert {t.arm for t in alone.record.trials} == {"stream"}
    assert {name for t in alone.record.trials for name in t.changes} == {"passes"}


@pytest.mark.parametrize("better", [True, False])
def test_what_gains_nothing_on_other_facts_is_not_taken(choose: Any, tmp_path: Path, better: bool) -> None:
    """The file of trials says what was found: on the facts of the search eta = 0.9 wins, on the others it may not."""
    probe = choose(only=("eta",), reconsolidate=False)
    trial = Trial(arm="stream", check=False, changes={}, score=0.5, seconds=0.0)
    replace = msgspec.structs.replace
    trials = [trial, replace(trial, changes={"eta": 0.9}, score=0.6)]
    trials += [replace(trial, check=True), replace(trials[1], check=True, score=0.55 if better else 0.45)]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / TRIALS).write_bytes(msgspec.json.encode(Trials(identity=probe.record.identity, trials=trials)))
    choice = choose(only=("eta",), reconsolidate=False)
    assert choice.go(60) == (SOLVE.replace(eta=0.9) if better else SOLVE)
    assert len(choice.record.trials) == 4


def test_the_check_teaches_other_facts(facts: list[Fact]) -> None:
    one, other = hold_out(facts, 8, 3), hold_out(facts, 8, 3, exchanged=True)
    taught = [{f.subject for f in held.taught} for held in (one, other)]
    assert len(taught[0]) == len(taught[1]) == 8
    assert taught[0].isdisjoint(taught[1])
    for held, own in zip((one, other), taught, strict=True):
        assert {f.subject for f in held.neighbours}.isdisjoint(own)


def test_a_network_keeps_the_ridge_that_it_learns(choose: Any) -> None:
    assert "log_ridge" in choose().grid
    network = choose("network", settings=SOLVE.replace(editor="malmen"))
    assert "log_ridge" not in network.grid
    network.go(0)
    assert network.settings.editor == "malmen"


def test_what_cannot_be_chosen_or_gone_on_with_is_refused(choose: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="leave --choose out"):
        choose(settings=SOLVE.replace(ask="published"))
    choose().go(0)
    with pytest.raises(UsageError, match="belongs to another search"):
        choose(settings=SOLVE.replace(c0=60.0))
    with pytest.raises(UsageError, match="belongs to another search"):
        choose(locality=2.0)
    (tmp_path / "out" / TRIALS).write_text("{")
    with pytest.raises(BadInputError, match="no file of trials"):
        choose()


def test_a_refused_solve_is_a_trial_too(choose: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start whose solve is singular: the worst score, and its reason in the file."""
    bad = SOLVE.replace(c0=0.0, preserved=0, preserved_keys=0.0, log_ridge=-2000.0)
    choice = choose(settings=bad, only=("eta",))
    assert choice.go(0) == bad
    stream = choice.record.trials[0]
    assert stream.score == -1
    assert "singular" in (stream.refused or "")
