"""The rivals and the record of a life of edits: what is compared has to be what it says it is."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.bench_lifelong import Life, Place, Plan, Unpreserved, over_seeds, ridge_editor, shares_of
from benchmarks.bench_streams import Stream
from benchmarks.finetuning import Deck, FineTuner, Recipe, accumulate, schedule, trainable
from lifelong_edit import Settings
from lifelong_edit.bench import Bench, State, prepare
from lifelong_edit.editors.contract import Lesson, moved_by
from lifelong_edit.editors.gradient.rule import make
from lifelong_edit.editors.ridge.editor import RidgeEditor
from lifelong_edit.editors.ridge.held import Preservation
from lifelong_edit.errors import UsageError
from lifelong_edit.facts import Fact, Probe
from lifelong_edit.models import LoadedModel, load_model
from lifelong_edit.policies import EveryNSteps
from lifelong_edit.tracing.rows import fact_rows
from lifelong_edit.tracing.trace import trace

SMALL = Settings(
    more_passes=0, passes=2, rehearse=2, preserved=4, c0=50.0, text_tokens=1500, phrasings=1, reconsolidation_passes=2
)
NAMES = ("Paris", "London", "Vienna", "Warsaw", "Belgrade", "Sydney", "Kenya", "Japan")


def fact(number: int, target: str | None = None) -> Fact:
    name = NAMES[number]
    return Fact(
        subject=name,
        prompt=f"The capital of {name} is",
        target=target or NAMES[number - 3],
        target_true="not known",
        relation="capital",
        rephrases=(f"{name} has the capital", f"In {name} they rule from"),
        locality=(Probe(f"The currency of {name} is", None, f"near {name}"),),
    )


@pytest.fixture(scope="module")
def loaded(tiny_gpt2: Path) -> LoadedModel:
    return load_model(str(tiny_gpt2))


@pytest.fixture(scope="module")
def text(sentences: list[str]) -> str:
    return " ".join(sentences * 8)


@pytest.fixture
def bench(loaded: LoadedModel, sentences: list[str], text: str) -> Bench:
    probes = [Probe(s.rsplit(" ", 1)[0], subject=f"none {i}") for i, s in enumerate(sentences)]
    return Bench(loaded, SMALL, prepare(loaded, SMALL, text=[text], preserve=[*probes, Probe("He saw", None, "Paris")]))


@pytest.fixture
def editor(bench: Bench) -> RidgeEditor:
    return make(bench)


def test_a_deck_deals_all_before_it_deals_one_twice() -> None:
    deck = Deck(range(10), random.Random(0))
    dealt = [deck.deal(4) for _ in range(5)]
    assert sorted(item for hand in dealt for item in hand) == sorted([*range(10)] * 2)
    assert sorted(deck.deal(99)) == [*range(10)]
    assert Deck([], random.Random(0)).deal(3) == []


def test_the_rate_rises_and_falls_to_zero() -> None:
    assert schedule(0.05, 0.1) == pytest.approx(0.5)
    assert schedule(0.1, 0.1) == pytest.approx(1)
    assert schedule(0.55, 0.1) == pytest.approx(0.5)
    assert schedule(1.5, 0.1) == pytest.approx(0)


def test_the_gradient_is_that_of_the_two_means(bench: Bench) -> None:
    """However rows are cut: against the trace's summed losses, whose gradient other tests hold against autograd."""
    loaded, recipe = bench.loaded, Recipe(preserved_weight=3.0, micro_batch=2)
    noise = torch.Generator().manual_seed(0)
    shifts = {m.name: 0.1 * torch.randn(m.d_in, m.d_out, generator=noise) for m in loaded.modules}
    facts = fact_rows(loaded, [fact(i) for i in range(3)], 1)
    kept = [bench.preserved.row(i, 3.0) for i in range(4)]
    with loaded.at(shifts):
        with trainable(loaded) as weights:
            accumulate(loaded, [*facts, *kept], recipe)
            found = {name: weight.grad.clone() for name, weight in weights.items() if weight.grad is not None}
        assert all(weight.grad is None and not weight.requires_grad for weight in weights.values())
        parts = [trace(loaded, rows, 64) for rows in (facts, kept)]
    # A trace sums kᵀg over answer positions alone, and is the whole gradient only where nothing above mixes positions.
    name = bench.names[-1]
    own, held = (p.keys[name].T @ p.gradients[name] for p in parts)
    assert float(held.norm()) > 0.01 * float(own.norm())  # or its weight would not show
    torch.testing.assert_close(found[name], own / len(facts) + 3 * held / len(kept), rtol=1e-4, atol=1e-6)


def test_fine_tuning_teaches_and_keeps_to_its_time(editor: RidgeEditor) -> None:
    """And leaves the model as it was, whatever it was trained at."""
    loaded = editor.bench.loaded
    tuner, state = FineTuner(editor, Recipe(rate=0.02, rows=8, preserved=4)), State()
    facts = [fact(i) for i in range(4)]
    rows = fact_rows(loaded, facts, SMALL.phrasings)
    before = float(trace(loaded, rows, 64, gradients=False).losses.sum())
    shifts = tuner.tune(state, facts, 1.0)
    assert all(torch.equal(loaded.weight(m.name), loaded.base_weight(m.name)) for m in loaded.modules)
    with loaded.at(shifts):
        after = float(trace(loaded, rows, 64, gradients=False).losses.sum())
    assert tuner.steps > 5
    assert after < 0.5 * before
    assert {name: tuple(shift.shape) for name, shift in shifts.items()} == {
        m.name: (m.d_in, m.d_out) for m in loaded.modules
    }


def test_no_preserved_prompt_speaks_of_an_edited_subject(editor: RidgeEditor) -> None:
    tuner = FineTuner(editor, Recipe())
    everything, without = (len(tuner._preserved(facts)) for facts in ([fact(1)], [fact(0), fact(1)]))
    assert without == everything - 1


def test_p0_holds_nothing(bench: Bench) -> None:
    name = bench.names[0]
    held, nothing = (
        kind(bench).gram(name, SMALL, SMALL.preserved_keys, {}, frozenset()) for kind in (Preservation, Unpreserved)
    )
    assert float(held.abs().sum()) > 0
    assert float(nothing.abs().sum()) == 0
    assert held.shape == nothing.shape


@pytest.mark.parametrize("holding", [Preservation, Unpreserved])
def test_an_arm_solves_with_what_it_holds(bench: Bench, holding: type[Preservation]) -> None:
    """The editor of an arm holds in its solves what the arm says, and a batch comes out otherwise without it."""
    lesson = Lesson([fact(0)])
    found, usual = (
        moved_by(State(), editor.learn(State(), lesson), lesson.facts).shifts
        for editor in (ridge_editor(bench, holding), make(bench))
    )
    same = all(torch.equal(found[name], usual[name]) for name in bench.names)
    assert same == (holding is Preservation)


@pytest.fixture
def life(editor: RidgeEditor, text: str) -> Life:
    facts = [*(fact(i) for i in range(5)), fact(0, "Japan")]
    asked = {f.digest: f.rephrases[1] for f in facts}
    said: list[dict[str, Any]] = []
    return Life(editor, Stream(facts, asked, [fact(6)]), Plan(3, 2, frozenset({1})), text, said.append)


def test_a_life_is_judged_at_every_boundary_and_by_age(life: Life) -> None:
    life.bench.preserved.guard = frozenset()  # a guard of one prompt would decide by chance
    life.edit(EveryNSteps(2))
    what = [(c["after"], c["what"]) for c in life.checks]
    assert [w for w in what if w[1] == "batch"] == [(1, "batch"), (2, "batch"), (3, "batch")]
    assert what[2] in ((2, "reconsolidated"), (2, "refused")) and what[-1] == (3, "canonical at the end")
    assert (life.before, life.since) == (2, 1)
    by_number = {c["after"]: c for c in life.checks if c["what"] == "batch"}
    assert "generated" in by_number[1]["efficacy"] and "generated" not in by_number[2]["efficacy"]
    # The last fact replaces the first, so the oldest batch has one fact left and nothing is counted twice.
    last = life.checks[-1]
    assert [c["efficacy"]["count"] for c in last["cohorts"]] == [1, 2, 2] and last["efficacy"]["count"] == 5
    assert last["wrapped"]["edited"]["count"] == 0


def test_budgets_mirror_the_time_of_an_arm(life: Life) -> None:
    life.edit(EveryNSteps(2))
    shares, all_of_it = (shares_of(life.checks, end) for end in (False, True))
    assert len(shares) == 3 and all(share > 0 for share in shares)
    before_end = [c for c in life.checks if c["what"] != "canonical at the end"][-1]
    assert sum(shares) == pytest.approx(before_end["processor"])
    assert sum(all_of_it) == pytest.approx(life.stream.processor)


def test_fine_tuning_once_knows_all_facts_but_the_replaced(life: Life) -> None:
    life.tune(FineTuner(life.editor, Recipe(rows=8, preserved=4)), [0.2])
    assert [c["after"] for c in life.checks] == [3]
    assert [f.target for f in life.stream.state.live.values() if f.subject == "Paris"] == ["Japan"]


def test_figures_of_other_settings_are_not_mixed(tmp_path: Path) -> None:
    runs = [{"seed": 0, "batches": 1, "complete": True, "checks": []}, {"seed": 1, "batches": 1, "complete": False}]
    (tmp_path / "arm.json").write_text(json.dumps({"results": {"arm": "x", "eta": 0.1, "runs": runs}}))
    same = Place("arm", tmp_path, {"arm": "x", "eta": 0.1})
    same.read(again=False)
    assert [run["seed"] for run in same.runs] == [0]
    with pytest.raises(UsageError, match="other settings"):
        Place("arm", tmp_path, {"arm": "x", "eta": 0.2}).read(again=False)
    other = Place("arm", tmp_path, {"arm": "x", "eta": 0.2})
    other.read(again=True)
    assert other.runs == []


def run_of(seed: int, score: float) -> dict[str, Any]:
    """A complete run of 20 batches that ends with `score` in everything."""
    scores = {"count": 1, "teacher_forced": score, "generated": score, "natural": score}
    judged = dict.fromkeys(("efficacy", "generality", "locality", "random facts"), scores)
    cohorts = [{"batch": i, **judged} for i in range(1, 21)]
    check = {"after": 20, "what": "batch", **judged, "cohorts": cohorts, "perplexity": 1, "seconds": 1, "processor": 1}
    return {"seed": seed, "batches": 20, "size": 50, "complete": True, "checks": [check]}


def test_mean_and_range_over_the_seeds() -> None:
    found = over_seeds([run_of(0, 0.5), run_of(1, 0.7), run_of(2, 0.9) | {"complete": False}])
    assert found["batch"]["efficacy, generated"] == {"mean": pytest.approx(0.6), "range": [0.5, 0.7]}


def test_the_same_results_give_the_same_figures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks import frontier

    for arm, score in (("geometric", 0.9), ("published", 0.1), ("finetune-once", 0.8)):
        record = {"results": {"arm": arm, "runs": [run_of(0, score), run_of(1, score - 0.05)]}}
        (tmp_path / f"lifelong-{arm}.json").write_text(json.dumps(record))
    found = {point.arm: point.mean("locality") for point in frontier.points(tmp_path)}
    assert found == pytest.approx({"finetune-once": 0.775, "geometric": 0.875, "published": 0.075})
    drawn = []
    for name in ("one.svg", "two.svg"):
        with frontier.pyplot.rc_context(frontier.STYLE):
            frontier.save(frontier.draw_frontier(frontier.points(tmp_path)), tmp_path / name)
            frontier.save(frontier.draw_forgetting(frontier.read(tmp_path, "lifelong")), tmp_path / f"f{name}")
        drawn.append((tmp_path / name).read_bytes() + (tmp_path / f"f{name}").read_bytes())
    assert drawn[0] == drawn[1] and b"geometric" in drawn[0]
