"""Choosing for every rule: what each may try, where it may edit, how facts are asked, how many trials."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from lifelong_edit.bench import State
from lifelong_edit.editors.contract import Given, Lesson, moved_by
from lifelong_edit.editors.registry import RULES, rule_of
from lifelong_edit.editors.ridge.settings import CHOSEN
from lifelong_edit.editors.tries import LAYER, Tries
from lifelong_edit.errors import BadInputError, UsageError
from lifelong_edit.facts import Fact, Probe
from lifelong_edit.judging.gate import answers_taken
from lifelong_edit.models import BASE, LoadedModel, Shifts, generate_greedy
from lifelong_edit.models.families import default_entries, layers_at
from lifelong_edit.settings import StoreSettings
from lifelong_edit.training import choosing
from lifelong_edit.training.asking import Asking
from lifelong_edit.training.choosing import Choice, Choosing
from lifelong_edit.training.episodes import TrainSettings
from lifelong_edit.training.run import Held, Scores, hold_out, known

TRAIN = TrainSettings(batch_size=4, validation_share=0.4)
PLACES = ("Paris", "London", "Vienna", "Warsaw", "Belgrade")
SMALL: dict[str, Any] = {"text_tokens": 2000, "micro_batch": 8, "contexts": 1, "context_tokens": 3}
Make = Callable[..., Choice]


def a_fact(number: int, **changes: Any) -> Fact:
    record: dict[str, Any] = {
        "subject": f"Vienna {number}",
        "prompt": f"The capital of Vienna {number} is",
        "target": PLACES[number % 5],
        "target_true": PLACES[(number + 2) % 2],
        "relation": "capital",
    }
    return Fact(**(record | changes))


FACTS = [a_fact(number) for number in range(24)]


def settings_for(name: str, **changes: Any) -> StoreSettings:
    kind = rule_of(name).settings
    small = {key: value for key, value in SMALL.items() if key in kind.__struct_fields__}
    return kind(editor=name, **(small | changes))


@pytest.fixture
def choose(loaded: LoadedModel, sentences: list[str], tmp_path: Path) -> Make:
    """Makes a choice for a rule in a folder."""

    def make(name: str, out: str = "out", facts: list[Fact] = FACTS, **options: Any) -> Choice:
        of = {key: options.pop(key) for key in list(options) if key in Choosing.__struct_fields__}
        settings = settings_for(name, **options)
        entries = settings.modules or default_entries(loaded.layers, rule_of(name).places, "gpt2")
        model, text = loaded.editing(entries), [" ".join(sentences * 20)]
        wanted = Choosing(**({"facts": 4, "batch_size": 2} | of))
        return Choice(model, facts, text, tmp_path / out, settings, TRAIN, wanted, lambda _: None)

    return make


def judged_by(choice: Choice, score: Callable[[dict[str, Any]], float]) -> list[dict[str, Any]]:
    """Trials without a model: their efficacy is a function of what is tried, which is on the list in the end."""
    met: list[dict[str, Any]] = []

    def teach(bench: Any, arm: str, held: Held) -> tuple[Scores, float]:
        told = msgspec.structs.asdict(bench.settings)
        point = {n: told[n] for n in choice.grid if n != LAYER} | {LAYER: bench.loaded.modules[-1].layer}
        met.append(point)
        return Scores(score(point), float("nan"), float("nan")), choice.base_perplexity

    choice._teach = teach  # type: ignore[method-assign]
    return met


# -- what is declared


@pytest.mark.parametrize("name", ["memit", "rome", "alphaedit", "nse", "li", "ultraedit", "grace"])
def test_a_search_starts_from_numbers(choose: Make, name: str) -> None:
    """Settings that are none, as most of these rules' are, have what they come to for the model."""
    choice = choose(name)
    tries = rule_of(name).tries
    assert {*choice.grid} == ({*tries.grid} - {"subject_c0"}) | ({LAYER} if tries.depths else set())
    assert all(isinstance(value, int | float) and np.isfinite(value) for value in choice.start.values())
    for setting in tries.relative:
        if getattr(choice.settings, setting) is None:
            assert choice.start[setting] in choice.grid[setting]
    if tries.depths:
        assert list(choice.grid)[1] == LAYER
        assert choice.start[LAYER] == choice.loaded.modules[-1].layer


@pytest.mark.parametrize(("name", "layer"), [("memit", 1), ("rome", 0)])
def test_the_usual_rate_is_half_of_what_hidden_states_have(choose: Make, name: str, layer: int) -> None:
    """By the states that transformers gives, behind the block; by what the matrix gives for a rule of one matrix."""
    choice = choose(name)
    model, windows = choice.loaded.model, choice.windows[:8]
    given: list[torch.Tensor] = []
    matrix = model.get_submodule(choice.loaded.modules[-1].name)
    handle = matrix.register_forward_hook(lambda module, arguments, output: given.append(output))
    with torch.no_grad():
        found = model(windows, output_hidden_states=True)
    handle.remove()
    assert choice.start[LAYER] == layer
    states = found.hidden_states[layer + 1] if name == "memit" else given[0]
    entries = states[:, 4:].abs().numpy()
    # the lower median, as torch has it
    typical = np.sort(np.sort(entries, -1)[..., (entries.shape[-1] - 1) // 2].ravel())
    assert choice.start["rate"] == pytest.approx(0.5 * 1.4826 * typical[(len(typical) - 1) // 2], rel=1e-5)
    if name == "memit":
        assert choice.start["c0"] == choice.loaded.modules[-1].d_in == 128


def test_the_usual_relative_rate_is_the_published_one(choose: Make) -> None:
    choice = choose("ft", epochs=2)
    weight = choice.loaded.base_weight(choice.loaded.modules[0].name).numpy()
    assert choice.start["relative_rate"] == pytest.approx(5e-4 / np.sqrt(np.mean(np.square(weight))), rel=1e-5)
    changes = {"relative_rate": choice.start["relative_rate"]}
    one, other = (rule_of("ft").make(choice.benches.at(of)) for of in ({}, changes))
    first, second = (moved_by(State(), e.learn(State(), Lesson(FACTS[:3])), FACTS[:3]).shifts for e in (one, other))
    for name, shift in first.items():
        assert float(shift.abs().max()) > 1e-4
        assert torch.allclose(shift, second[name], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("name", ["neurons", "search", "memit", "rome"])
def test_only_what_is_declared_reaches_what_init_fixes(loaded: LoadedModel, sentences: list[str], name: str) -> None:
    rule, settings = rule_of(name), settings_for(name)
    model = loaded.editing(default_entries(loaded.layers, rule.places, "gpt2"))
    given = Given({}, [" ".join(sentences * 20)], [Probe("The river of Kenya is"), Probe("He saw")])
    others = {n: v[0] for n, v in rule.tries.grid.items() if n not in rule.tries.fixing}
    before = rule.fix(model, settings, given)
    after = rule.fix(model, settings.replace(**others), given)
    assert before and {*before} == {*after}
    assert all(np.array_equal(before[n], after[n]) for n in before)
    for setting in rule.tries.fixing:
        moved = rule.fix(model, settings.replace(**{setting: rule.tries.grid[setting][0]}), given)
        assert not all(np.array_equal(before[n], moved[n]) for n in before), setting


@pytest.mark.parametrize(
    "tries",
    [
        Tries(grid={"seed": (1, 2)}),
        Tries(grid={"epochs": (2, 1)}),
        Tries(grid={"epochs": (1, 2)}, relative=frozenset({"rate"})),
        Tries(grid={"layer": (1, 2)}),
        Tries(grid={"epochs": (1, 2)}, depths=(0.5, 1.5)),
    ],
)
def test_a_declaration_that_is_not_sound_is_refused(tries: Tries) -> None:
    with pytest.raises(ValueError, match="the rule ft is not sound"):
        replace(rule_of("ft"), tries=tries)
    with pytest.raises(ValueError, match="edit one layer"):
        replace(rule_of("gradient"), tries=Tries(depths=(0.1, 0.5)))


def test_a_rule_without_a_grid_is_refused(choose: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = replace(rule_of("ft"), tries=Tries())
    assert rule_of("ft").trains == {"settings"} and not bare.trains
    monkeypatch.setattr(choosing, "rule_of", lambda name: bare)
    with pytest.raises(UsageError, match="ft has no settings that could be chosen; leave --choose out"):
        choose("ft")


def test_what_cannot_be_is_refused(choose: Make) -> None:
    with pytest.raises(UsageError, match="expected some of relative_rate, epochs, layer"):
        choose("ft", only=("eta",))
    with pytest.raises(UsageError, match="modules named and the layer to choose"):
        choose("ft", modules=("2",), only=("layer",))
    assert LAYER not in choose("ft", modules=("2",)).grid
    apart = [a_fact(n, prompt=f"It has a capital, namely number {n}:") for n in range(24)]
    with pytest.raises(BadInputError, match="0 held-out facts that the editing rule memit can be taught"):
        choose("memit", facts=apart)


# -- where it edits


@pytest.mark.parametrize("name", ["ft", "rome"])
def test_the_layer_is_chosen_with_the_settings(choose: Make, tmp_path: Path, name: str) -> None:
    """The layer below the default one is better, and twice the usual rate there alone."""
    rate = "relative_rate" if name == "ft" else "rate"
    choice = choose(name, only=(rate, LAYER))
    begun, usual = int(choice.start[LAYER]), choice.start[rate]
    goal = begun - 1 if begun - 1 in choice.grid[LAYER] else begun + 1
    assert goal in choice.grid[LAYER]
    faster = choice.grid[rate][choice.grid[rate].index(usual) + 1]
    met = judged_by(choice, lambda p: 0.5 + 0.2 * (p[LAYER] == goal) + 0.1 * (p[LAYER] == goal and p[rate] == faster))
    found = choice.go(60)
    assert {p[LAYER] for p in met} >= {begun, goal}
    assert getattr(found, rate) == faster
    there = choice.loaded.editing(found.modules).modules
    assert [m.layer for m in there] == [goal]
    assert {m.positions for m in there} == {m.positions for m in choice.loaded.modules}
    result = msgspec.json.decode((tmp_path / "out" / CHOSEN).read_bytes())
    assert result["editor"] == name and result["changes"] == {LAYER: goal, rate: faster}
    assert tuple(result["settings"]["modules"]) == found.modules
    assert "seed" not in result["settings"] and "text_tokens" in result["settings"]


def test_some_layers_in_a_row_move_together(choose: Make) -> None:
    choice = choose("memit")
    for layer in choice.grid[LAYER]:
        modules = choice.benches.at({LAYER: layer}).loaded.modules
        assert [m.layer for m in modules] == list(range(max(0, int(layer) - 4), int(layer) + 1))
        assert {m.positions for m in modules} == {"subject"}
    assert layers_at(30, (0.15, 0.3, 0.3, 1.0)) == [4, 9, 29]


def test_a_trial_elsewhere_leaves_the_model_at_its_base(choose: Make) -> None:
    choice = choose("ft", relative_rate=0.1, epochs=2)
    before = [p.clone() for p in choice.loaded.model.parameters()]
    one = choice._try("stream", {LAYER: 1}, check=False)
    assert one.refused is None and one.efficacy is not None
    assert all(torch.equal(a, b) for a, b in zip(before, choice.loaded.model.parameters(), strict=True))
    assert choice.benches.at({LAYER: 1}).fixed is choice.benches.at({LAYER: 1, "epochs": 5}).fixed
    assert choice.benches.at({}).fixed is not choice.benches.at({LAYER: 1}).fixed


# -- how many trials


def test_a_bound_in_trials(choose: Make) -> None:
    """It counts what the search met, the start too; with a greater one the same search goes on."""
    met: dict[str, Any] = {}
    for out, bounds in (("at once", (5,)), ("in parts", (1, 3, 5))):
        for bound in bounds:
            choice = choose("ft", out, trials=bound)
            judged_by(choice, lambda p: 0.01 * p["epochs"] - 0.1 * abs(p[LAYER] - 1))
            choice.go(60)
            assert len([t for t in choice.record.trials if not t.check]) == bound
        met[out] = [t.changes for t in choice.record.trials if not t.check]
    assert met["at once"] == met["in parts"]


def test_rates_that_teach_nothing_are_looked_past(choose: Make) -> None:
    """From a start that teaches nothing; figures of a trial are looked up, not taken again."""
    choice = choose("ft", only=("relative_rate",))
    grid = choice.grid["relative_rate"]
    met = judged_by(choice, lambda p: 0.9 if p["relative_rate"] == grid[4] else 0.0)
    assert grid[2] == choice.start["relative_rate"]
    assert choice.go(60).replace(relative_rate=None) == choice.settings
    tried = [t.changes.get("relative_rate") for t in choice.record.trials if not t.check]
    assert tried == [None, grid[3], grid[4], grid[5], *tried[4:]]
    assert len(met) == len(choice.record.trials)


# -- how facts are asked


def test_facts_are_asked_by_generation(loaded: LoadedModel) -> None:
    """In a model that says one thing to everything: facts, phrasings, neighbours, and what the base model said."""
    asking = Asking(generated=True)
    held = hold_out([a_fact(n, rephrases=(f"Vienna {n} has", f"See Vienna {n}:")) for n in range(12)], 5, 0)
    alone = Held(held.taught, held.asked, [])
    brought = [msgspec.structs.replace(f, locality=(Probe("He saw"), Probe("The river"), Probe("no"))) for f in FACTS]
    own = Held(brought[:3], [f.prompt for f in brought[:3]], [])
    noise = {m.name: torch.randn(m.d_in, m.d_out) for m in loaded.modules}
    with loaded.at(BASE):
        assert asking.scores(loaded, own).locality == 1.0
        assert np.isnan(asking.scores(loaded, alone).locality)
        base = asking.scores(loaded, held)
        assert base.efficacy == np.mean(answers_taken(loaded, held.taught))
    with loaded.at(Shifts(noise)):
        assert asking.scores(loaded, own).locality < 1.0
    said = {f.prompt for f in held.taught[:2]} | {held.asked[0]} | {held.neighbours[0].prompt}

    def right(of: LoadedModel, pairs: Any) -> list[bool]:
        assert all(answer for _, answer in pairs)
        return [(asked if isinstance(asked, str) else asked.prompt) in said for asked, _ in pairs]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lifelong_edit.training.asking.right_answers", right)
        found = asking.scores(loaded, held)
    share = sum(p in said for p in held.asked) / len(held.asked)
    assert (found.efficacy, found.generality) == (2 / len(held.taught), share)
    assert found.locality == 1 / len(held.neighbours)


def test_locality_is_asked_of_what_the_model_knows(loaded: LoadedModel) -> None:
    """Of neighbours whose true answer the model does not give, nothing can be kept: they would only dull the score."""
    with loaded.at(BASE):
        said = loaded.tokenizer.decode(generate_greedy(loaded, ["The capital of Vienna 0 is"], 1)[0]).strip()
    facts = [a_fact(n, target_true=said if n % 2 else "Paris") for n in range(12)]
    held, told = hold_out(facts, 5, 0), list[str]()
    asking = Asking(generated=True)
    with loaded.at(BASE):
        right = asking.neighbours_right(loaded, held)
    found = known(held, right, told.append)
    assert 0 < len(found.neighbours) < len(held.neighbours) and found.taught == held.taught
    assert all(fact.target_true == said for fact in found.neighbours)
    assert told == [
        f"the model answers {len(found.neighbours)} of {len(held.neighbours)} held-out neighbours as their target_true "
        "says; locality is asked of these"
    ]
    with loaded.at(BASE):
        assert asking.scores(loaded, found).locality == 1.0
    assert known(found, [True] * len(found.neighbours), told.append) == found and len(told) == 1


def test_every_rule_says_how_it_is_tried() -> None:
    asked = {name for name in RULES if not rule_of(name).tries.generated}
    assert asked == {name for name in RULES if rule_of(name).tries.reconsolidate} == {"malmen", "gradient"}
    assert asked == {name for name in RULES if not rule_of(name).tries.persists}
    without = {name for name in RULES if not rule_of(name).tries.depths}
    assert without == {"malmen", "gradient", "ultraedit", "stableedit", "mend", "rledit", "serac"}
