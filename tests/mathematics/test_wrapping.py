"""Wrappers: what each makes of a shift, against NumPy; and what it makes of a rule at work, on a tiny GPT-2."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from lifelong_edit.bench import Bench, Fixed, State
from lifelong_edit.editors.contract import Given, KeepsKeys, Lesson, Whole, moved_by
from lifelong_edit.editors.locate.editor import LocateEditor
from lifelong_edit.editors.locate.sites import block_of
from lifelong_edit.editors.registry import RULES, rule_of
from lifelong_edit.editors.retrieval.encoding import block_at
from lifelong_edit.editors.wrapping import WRAPPERS, refusal, within
from lifelong_edit.editors.wrapping.around import Around
from lifelong_edit.editors.wrapping.nas import LENGTHS, Nas
from lifelong_edit.editors.wrapping.prune import Prune
from lifelong_edit.editors.wrapping.simie import Simie
from lifelong_edit.errors import BadInputError, UsageError
from lifelong_edit.facts import Fact
from lifelong_edit.judging.staleness import drifts
from lifelong_edit.models import BASE, LoadedModel, load_model
from lifelong_edit.numerics.reshaping import compressed, greatest_singular, joined, most_changing, of_length
from lifelong_edit.settings import StoreSettings
from lifelong_edit.stores import materialise
from lifelong_edit.tasks import sentence_of
from lifelong_edit.tracing.rows import fact_rows
from tests.mathematics.conftest import shift_of, whole_of

LINES = ["The river of the people was long and old, and the town was by the road to the sea of the north."] * 20
SMALL: dict[str, Any] = {
    "text_tokens": 3000, "micro_batch": 8, "contexts": 1, "steps": 3, "c0": 5.0, "more_passes": 0, "passes": 1,
    "rehearse": 2, "preserved": 2, "phrasings": 0, "rate": 0.05, "epochs": 3, "batch": 4, "epsilon": 1e-3,
    "room": 8, "wording": r"{facts}\n{question}",
}  # fmt: skip
EXACT = 1e-9
"""Relative. Two float64 solves of one well conditioned system of 12 differ by some hundred roundings."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """A model this small gains nothing from threads, and on a busy machine they wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def drawn() -> Callable[..., torch.Tensor]:
    """`drawn(rows, columns)`: random numbers, float64."""
    generator = torch.Generator().manual_seed(7)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


# -- what is made of a shift


def test_the_entries_that_change_their_weight_most_are_kept(drawn: Callable[..., torch.Tensor]) -> None:
    shift, weight = drawn(12, 7), drawn(12, 7)
    found = most_changing(shift, weight, 0.25).numpy()
    change = np.abs(shift.numpy() / weight.numpy())
    wanted = np.where(change >= np.sort(change, axis=None)[-21], shift.numpy(), 0)
    assert (found == wanted).all() and (found != 0).sum() == 21
    assert torch.equal(most_changing(shift, weight, 1.0), shift)
    dead = most_changing(torch.ones(2, 2), torch.tensor([[0.0, 1.0], [2.0, 3.0]]), 0.25)
    assert dead.tolist() == [[1, 0], [0, 0]], "a weight of zero changes most, and is no error"


def test_great_singular_values_are_made_smaller_and_others_are_not(drawn: Callable[..., torch.Tensor]) -> None:
    shift = 40 * drawn(12, 7)
    values = np.linalg.svd(shift.numpy(), compute_uv=False)
    bound = float(values[3] + values[4]) / 2
    found = np.linalg.svd(compressed(shift, bound, 1.5).numpy(), compute_uv=False)
    logged = bound + np.log(values[:4]) / np.log(1.5) - np.log(bound) / np.log(1.5)
    assert (logged < values[:4]).all(), "otherwise the bound below is tested"
    np.testing.assert_allclose(found, [*logged, *values[4:]], rtol=EXACT)
    assert torch.equal(compressed(shift, float(values[0]) * 1.01, 1.5), shift)
    left, right = (part.numpy() for part in torch.linalg.svd(shift, full_matrices=False)[::2])
    np.testing.assert_allclose(compressed(shift, bound, 1.5).numpy(), left * found @ right, atol=1e-9)
    assert greatest_singular(shift.float()) == pytest.approx(values[0], rel=1e-6)


def test_a_logarithm_that_begins_too_steep_makes_nothing_greater(drawn: Callable[..., torch.Tensor]) -> None:
    shift = drawn(12, 7) / 10
    values = np.linalg.svd(shift.numpy(), compute_uv=False)
    found = np.linalg.svd(compressed(shift, float(values[3]), 1.2).numpy(), compute_uv=False)
    assert values[3] + np.log(values[0] / values[3]) / np.log(1.2) > values[0], "published, it would be greater"
    np.testing.assert_allclose(found, values, rtol=1e-7)


def test_edits_joined_one_by_one_are_their_least_squares(drawn: Callable[..., torch.Tensor]) -> None:
    """SimIE over a stream is its closed form: explicit inverse and sums in NumPy."""
    keys, edits, anchor = [drawn(n, 12) for n in (3, 1, 5)], [drawn(12, 7) for _ in range(3)], 0.7
    found, all_keys = torch.zeros(12, 7, dtype=torch.float64), torch.zeros(12, 12, dtype=torch.float64)
    for k, edit in zip(keys, edits, strict=True):
        all_keys = all_keys + k.T @ k
        found = joined(found, edit, k.T @ k, all_keys, anchor)
    grams = [k.numpy().T @ k.numpy() for k in keys]
    asked = sum(gram @ edit.numpy() for gram, edit in zip(grams, edits, strict=True))
    wanted = np.linalg.inv(anchor * np.eye(12) + sum(grams)) @ asked
    assert np.abs(found.numpy() - wanted).max() < EXACT * np.abs(wanted).max()
    slack = lambda shift: (  # noqa: E731
        sum(float((k @ (shift - e)).square().sum()) for k, e in zip(keys, edits, strict=True))
        + anchor * float(shift.square().sum())
    )
    assert slack(found) < min(slack(found + 1e-3 * drawn(12, 7)) for _ in range(20)), "no minimum"


def test_states_have_one_length_and_those_too_long_ask_for_nothing(drawn: Callable[..., torch.Tensor]) -> None:
    states = drawn(4, 6)
    states = states / states.norm(dim=1, keepdim=True) * torch.tensor([1.0, 2.9, 3.1, 9.0])[:, None]
    found, asking = of_length(states, 1.5, 2.0)
    np.testing.assert_allclose(found.norm(dim=1).numpy(), [1.5] * 4, rtol=EXACT)
    assert asking.tolist() == [True, True, False, False]
    np.testing.assert_allclose(torch.cosine_similarity(found, states).numpy(), [1.0] * 4, rtol=EXACT)


# -- what can stand around what


def test_what_cannot_be_wrapped_is_refused_in_a_sentence() -> None:
    for name, match in (
        ("rect+grace", "the rule grace does not bring weight shifts alone"),
        ("li+neurons", "the rule neurons does not bring weight shifts alone"),
        ("rect+rect+memit", "found rect around itself"),
        ("rect+prune+memit", "prune looks at the sum of all shifts, so it stands outermost"),
        ("nas+gradient", "found nas around gradient; expected a rule that searches hidden states"),
        ("nas+rect+memit", "with all other wrappers around nas"),
        ("warp+memit", "found the wrapper 'warp'; expected one of li, rect, prune, simie, nas, retrieval"),
        ("retrieval+serac", "the rule serac remembers the live facts itself"),
        ("retrieval+retrieval+memit", r"the rule retrieval\+memit remembers the live facts itself"),
        ("rect+retrieval+memit", r"the rule retrieval\+memit does not bring weight shifts alone"),
        ("rect+memoir", "setting editor is 'memoir'; it must be one of malmen, .* or one with a wrapper before it"),
        ("memitt", "near it: memit"),
    ):
        with pytest.raises(UsageError, match=match):
            rule_of(name)
    alone = {name for name in RULES if refusal("rect", rule_of(name))}
    assert alone == {"grace", "neurons", "coachhook", "wise", "retrieval", "serac"}
    assert {name for name in RULES if refusal("retrieval", rule_of(name))} == {"retrieval", "serac"}
    around = {name for name in RULES if not refusal("nas", rule_of(name))}
    assert around == {"rome", "r-rome", "memit", "memit-seq", "emmet", "alphaedit", "nse"}


def test_a_wrapped_rule_declares_what_the_rule_does_and_the_wrapper_adds() -> None:
    for name in WRAPPERS:
        rule, inner = rule_of(f"{name}+alphaedit"), rule_of("alphaedit")
        exports = inner.exports if name != "retrieval" else frozenset()
        assert (rule.needs, rule.tasks, rule.exports, rule.places) == (
            inner.needs, inner.tasks, exports, inner.places,
        )  # fmt: skip
        assert rule.settings is rule_of(f"{name}+alphaedit").settings, "settings could not be told to be the store's"
        assert set(rule.settings.__struct_fields__) == {*inner.settings.__struct_fields__, *WRAPPERS[name].adds}
        settings = rule.settings(free=0.1)  # type: ignore[call-arg]
        assert settings.editor == rule.name and within(settings, inner) == inner.settings(editor="alphaedit", free=0.1)  # type: ignore[call-arg]
        assert inner.relearns in rule.relearns
    assert set(rule_of("rect+gradient").settings().told()) >= {"keep", "passes"}, "of an order of their own"
    both = rule_of("prune+rect+nas+memit")
    assert {"keep", "log_base", "pilots", "kl"} <= set(both.settings.__struct_fields__)
    assert both.further_parts == ["lengths"]
    front = rule_of("retrieval+neurons")
    assert front.by_facts and not front.shifts and front.tasks == {"causal"} and front.further_parts == ["neurons"]
    with pytest.raises(UsageError, match="setting keep is 2"):
        rule_of("rect+memit").settings(keep=2.0)  # type: ignore[call-arg]
    with pytest.raises(UsageError, match=r"setting wording is 'x'; it must have \{facts\} in it once"):
        rule_of("retrieval+memit").settings(wording="x")  # type: ignore[call-arg]


# -- rules at work


@pytest.fixture(scope="module")
def lower(tiny_gpt2: Any) -> LoadedModel:
    """The tiny GPT-2, two layers of it edited at the subject."""
    return load_model(str(tiny_gpt2), modules=["0-1@subject"])


Make = Callable[..., tuple[Any, Any]]


@pytest.fixture
def pair(lower: LoadedModel, fixed: Fixed) -> Make:
    """`pair(name, ...)`: a wrapped rule at work, and the rule inside by itself."""

    def make(name: str, **changes: Any) -> tuple[Any, Any]:
        rule, inner = rule_of(name), rule_of(name.partition("+")[2])
        small = {n: v for n, v in (SMALL | changes).items() if n in rule.settings.__struct_fields__}
        settings = rule.settings(**small)
        arrays = rule.fix(lower, settings, Given({}, LINES, []))
        bench = Bench(lower, settings, Fixed(fixed.text, fixed.conflict_mean, fixed.preserved, None, arrays))
        return rule.make(bench), inner.make(bench.under(within(settings, inner)))

    return make


def streamed(editor: Any, batches: Sequence[Sequence[Fact]]) -> State:
    """The state after batches."""
    state = State()
    for number, batch in enumerate(batches):
        state = moved_by(state, editor.learn(state, Lesson(batch)), batch)
        state.digest = str(number)
    return state


def test_rect_keeps_some_entries_of_what_the_rule_proposes(pair: Make, news: list[Fact]) -> None:
    wrapped, inner = pair("rect+memit-seq", keep=0.1)
    state = streamed(wrapped, [news[:2]])
    change, whole = (editor.learn(state, Lesson(news[2:4])) for editor in (wrapped, inner))
    for name, shift in shift_of(change).items():
        found, proposed = materialise(shift), materialise(shift_of(whole)[name])
        kept = found != 0
        assert kept.sum() == np.ceil(0.1 * found.size) and (found[kept] == proposed[kept]).all()
        weight = np.abs(wrapped.bench.loaded.base_weight(name).numpy())
        assert (np.abs(proposed) / weight)[kept].min() >= (np.abs(proposed) / weight)[~kept].max()
    again, all_of_it = whole_of(wrapped.relearn(news[:4])), whole_of(inner.relearn(news[:4]))
    assert all(torch.equal(again[n][again[n] != 0], all_of_it[n][again[n] != 0]) for n in again)
    assert all(int((shift != 0).sum()) == np.ceil(0.1 * shift.numel()) for shift in again.values())


@pytest.mark.parametrize("name", ["rect+memit-seq", "rect+nas+memit", "li+gradient", "simie+search"])
def test_keys_are_those_at_the_weights_that_the_wrapper_leaves(pair: Make, news: list[Fact], name: str) -> None:
    """Otherwise the next batch would hold keys still that no state has."""
    wrapped, inner = pair(name, keep=0.1, alpha=0.5, rounds=2, more_rounds=0, swapped=1)
    assert isinstance(inner, KeepsKeys)
    state = streamed(wrapped, [news[:2]])
    change = wrapped.learn(state, Lesson(news[2:4]))
    after = moved_by(state, change, news[2:4])
    conflict = {digest: keys.conflict for digest, keys in change.keys().items()}
    facts = [fact for fact in news[:4] if fact.digest in conflict]
    wanted = inner.keys_at(after.shifts, facts, conflict)
    elsewhere = inner.keys_at(state.shifts, facts, conflict)
    different = 0
    for digest, keys in change.keys().items():
        for module, rows in keys.rows.items():
            assert np.abs(rows.astype(int) - wanted[digest].rows[module]).max() <= 1
            different += int(np.abs(rows.astype(int) - elsewhere[digest].rows[module]).max() > 1)
    assert different, "the weights did not move"


def test_a_share_of_any_rules_shift_is_kept(pair: Make, news: list[Fact]) -> None:
    wrapped, inner = pair("li+gradient", alpha=0.25)
    whole = shift_of(inner.learn(State(), Lesson(news[:3])))
    for name, shift in shift_of(wrapped.learn(State(), Lesson(news[:3]))).items():
        np.testing.assert_allclose(materialise(shift), 0.25 * materialise(whole[name]), rtol=1e-6)
    chosen = pair("li+memit", grid=4, validation=5)[0].learn(State(), Lesson(news[:3])).report
    assert [point["alpha"] for point in chosen["curve"]] == [0.25, 0.5, 0.75, 1.0]


def test_prune_shows_a_smaller_sum_and_stores_the_sum(pair: Make, news: list[Fact]) -> None:
    """Batches go on from the sum: nothing is made smaller twice."""
    wrapped, inner = pair("prune+gradient", bound=1e-3, log_base=2.0)
    assert isinstance(wrapped, Prune)
    state, plain = (streamed(editor, [news[:2], news[2:4]]) for editor in (wrapped, inner))
    shown = wrapped.overlay(state).shifts
    for name, shift in state.shifts.items():
        assert torch.equal(shift, plain.shifts[name])
        bound = 1e-3 * np.linalg.norm(wrapped.bench.loaded.base_weight(name).numpy(), ord=2)
        values = np.linalg.svd(shift.numpy().astype(float), compute_uv=False)
        logged = np.minimum(values, bound + np.log2(np.maximum(values, 1e-30) / bound))
        found = np.linalg.svd(shown[name].numpy().astype(float), compute_uv=False)
        assert values[0] > bound
        np.testing.assert_allclose(found, np.where(values > bound, logged, values), atol=1e-5 * values[0])
    loose = pair("prune+gradient", bound=1e6)[0]
    assert all(torch.equal(loose.overlay(state).shifts[name], shift) for name, shift in state.shifts.items())


def test_simie_over_a_stream_is_its_closed_form(pair: Make, news: list[Fact]) -> None:
    """Each batch edited into the base by the rule itself; keys of all tokens read off a bare pass of the model."""
    wrapped, inner = pair("simie+gradient", anchor=0.3)
    assert isinstance(wrapped, Simie)
    batches, state = [news[:2], news[2:3], news[3:6]], State()
    asked: dict[str, Any] = {}
    grams: dict[str, Any] = {}
    zeros = {m.name: np.zeros((m.d_in, m.d_out), np.float32) for m in wrapped.bench.loaded.modules}
    for number, batch in enumerate(batches):
        edits = inner.learn(State(digest=state.digest), Lesson(batch)).weights(zeros)
        for name, keys in bare_keys(wrapped.bench, batch).items():
            grams[name] = grams.get(name, 0) + keys.T @ keys
            asked[name] = asked.get(name, 0) + keys.T @ keys @ edits[name]
        state = moved_by(state, wrapped.learn(state, Lesson(batch)), batch)
        state.digest = str(number)
    for name, shift in state.shifts.items():
        wanted = np.linalg.solve(0.3 * np.eye(len(shift)) + grams[name], asked[name])
        assert np.linalg.norm(shift.numpy() - wanted) < 1e-4 * np.linalg.norm(wanted)
        assert np.linalg.norm(wanted) > 0


def bare_keys(bench: Bench, facts: Sequence[Fact]) -> dict[str, Any]:
    """By module the inputs at all tokens of prompt and target, (n, d_in) float64, from hooks on the model itself.

    On the grid on which all keys are kept.
    """
    found: dict[str, list[Any]] = {name: [] for name in bench.names}
    for row in fact_rows(bench.loaded, facts, 0):
        hooks = [
            bench.loaded.model.get_submodule(name).register_forward_pre_hook(
                lambda module, given, name=name: found[name].append(given[0][0].double().numpy())
            )
            for name in bench.names
        ]
        with torch.no_grad():
            bench.loaded.model(input_ids=torch.tensor([list(row.encoded.ids)]))
        for hook in hooks:
            hook.remove()
    scale = {name: bench.scale[name].numpy() for name in bench.names}
    return {name: np.round(np.concatenate(keys) / scale[name]) * scale[name] for name, keys in found.items()}


def test_a_replaced_fact_leaves_what_simie_holds(pair: Make, news: list[Fact]) -> None:
    wrapped, _ = pair("simie+gradient", anchor=0.3)
    state = streamed(wrapped, [news[:2], news[2:4]])
    change = wrapped.learn(state, Lesson(news[4:5], retire=[news[0].digest]))
    left = {digest: fact for digest, fact in state.live.items() if digest != news[0].digest}
    fresh = pair("simie+gradient", anchor=0.3)[0]
    without = fresh.learn(State(state.shifts, left, state.keys, {}, state.digest), Lesson(news[4:5]))
    for name, shift in shift_of(change).items():
        assert (materialise(shift) == materialise(shift_of(without)[name])).all()
    with pytest.raises(UsageError, match="simie edits from the base alone; found a warm start"):
        wrapped.relearn(news[:2], start=state.shifts)


def test_nas_asks_for_states_of_the_pilots_length(
    pair: Make, news: list[Fact], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean over the first facts in the base model, whatever is edited later; what is too long is left alone."""
    wrapped, inner = pair("nas+memit", pilots=3)
    assert isinstance(wrapped, Nas) and isinstance(inner, LocateEditor)
    asked: list[torch.Tensor] = []
    usual = LocateEditor.spread

    def spread(self: Any, work: Any, facts: Any, rows: Any, wanted: torch.Tensor, *rest: Any) -> bool:
        asked.append(wanted)
        return usual(self, work, facts, rows, wanted, *rest)

    monkeypatch.setattr(LocateEditor, "spread", spread)
    state = streamed(wrapped, [news[:2], news[2:5]])
    pilots = inner.lengths(news[:3]).double().numpy()
    np.testing.assert_allclose(np.asarray(state.parts[LENGTHS][LENGTHS]), pilots, rtol=1e-4)
    np.testing.assert_allclose(asked[0].norm(dim=1).numpy(), pilots[:2].mean(), rtol=1e-4)
    np.testing.assert_allclose(asked[1].norm(dim=1).numpy(), pilots.mean(), rtol=1e-4)
    assert np.ptp(pilots) > 1e-3 * pilots.mean(), "all are as long anyway"
    plain = inner.learn(State(), Lesson(news[:2]))
    same = pair("nas+memit", pilots=3)[0].learn(State(), Lesson(news[:2]))
    assert any((materialise(s) != materialise(shift_of(plain)[n])).any() for n, s in shift_of(same).items())
    short = float(pilots.min()) / 2.5
    nothing = pair("nas+memit", length=short)[0].learn(State(), Lesson(news[:3]))
    assert set(nothing.report["too_long"]) == {fact.digest for fact in news[:3]}
    assert all(not materialise(shift).any() for shift in shift_of(nothing).values())
    part = nothing.parts[LENGTHS]
    assert isinstance(part, Whole) and len(part.arrays[LENGTHS]) == 0


def test_wrappers_stand_around_wrappers(pair: Make, news: list[Fact]) -> None:
    wrapped, inner = pair("prune+rect+nas+memit", keep=0.3, pilots=2, bound=1e-3)
    assert isinstance(wrapped, Around) and isinstance(inner.inner, Nas)
    state = streamed(wrapped, [news[:2]])
    assert set(state.parts) == {LENGTHS}
    assert all(0 < int((shift != 0).sum()) <= np.ceil(0.3 * shift.numel()) for shift in state.shifts.values())
    assert any(not torch.equal(wrapped.overlay(state).shifts[n], shift) for n, shift in state.shifts.items())


def test_settings_of_a_wrapped_rule_are_read_back() -> None:
    kind: type[StoreSettings] = rule_of("rect+memit").settings
    settings = kind(keep=0.3)  # type: ignore[call-arg]
    assert msgspec.convert(settings.told(), kind, strict=False) == settings
    assert settings.told()["editor"] == "rect+memit"


# -- a rule in front of another


@pytest.fixture
def brief(news: list[Fact]) -> list[Fact]:
    """The same facts with targets of a word: before their own questions in a context of 64 tokens there is room."""
    return [msgspec.structs.replace(fact, target=fact.target.split()[0]) for fact in news]


def test_facts_are_put_before_questions_of_the_edited_model(pair: Make, brief: list[Fact]) -> None:
    """What is asked for is read behind its fact at the shifted weights; all else is what the rule inside says."""
    wrapped, inner = pair("retrieval+gradient", false_alarms=0.5)
    state, plain = (streamed(editor, [brief[:2], brief[2:4]]) for editor in (wrapped, inner))
    assert all(torch.equal(state.shifts[name], shift) for name, shift in plain.shifts.items()), "it taught otherwise"
    loaded, task = wrapped.bench.loaded, wrapped.bench.task
    asked, other = brief[0].prompt, "Ada Lovelace was born"
    wanted = f"{sentence_of(brief[0])}\n{asked}"
    with loaded.at(inner.overlay(plain)):
        behind, bare, else_said = task.answer(loaded, [wanted, asked, other], 6)
    with loaded.at(BASE):
        unedited = task.answer(loaded, [wanted, other], 6)
    with loaded.at(wrapped.overlay(state)):
        assert loaded.put(asked) == wanted and loaded.put(other) == other
        assert task.answer(loaded, [asked, other], 6) == [behind, else_said]
    assert behind != bare and [behind, else_said] != unedited, "nothing was put, or nothing was edited"
    change = wrapped.learn(state, Lesson(brief[4:5], retire=[brief[0].digest]))
    with loaded.at(wrapped.overlay(moved_by(state, change, brief[4:5], [brief[0].digest]))):
        assert loaded.put(asked) == asked, "what was replaced is put yet"
    assert change.report["retrieval"]["threshold"] == wrapped.memory.gate.scale.threshold


def test_a_rule_with_hooks_has_them_behind_the_memory(pair: Make, brief: list[Fact]) -> None:
    """And texts are compared behind layer 3 of 4, where layers 0 and 1 are edited."""
    wrapped, inner = pair("retrieval+coachhook", rate=0.5, alpha=0.1)
    loaded, state = wrapped.bench.loaded, streamed(wrapped, [brief[:2]])
    assert block_at(loaded, 27 / 32) == "transformer.h.3" and block_of(loaded.modules[-1]) == "transformer.h.1"
    assert wrapped.memory.gate._encoder._site.name == "transformer.h.3"
    ids = torch.tensor([loaded.tokenizer(brief[0].prompt).input_ids])
    logits = []
    for overlay in (BASE, inner.overlay(state), wrapped.overlay(state)):
        with loaded.at(overlay), torch.no_grad():
            logits.append(loaded.model(input_ids=ids).logits)
    assert torch.equal(logits[2], logits[1]) and not torch.equal(logits[1], logits[0])


def test_keys_are_those_of_questions_that_nothing_is_put_before(pair: Make, brief: list[Fact]) -> None:
    """As the rule inside was taught: whoever traces them at a state would else find them all gone stale."""
    wrapped, inner = pair("retrieval+memit-seq", false_alarms=0.5)
    state = streamed(wrapped, [brief[:2]])
    loaded = wrapped.bench.loaded
    with loaded.at(wrapped.overlay(state)):
        assert loaded.put(brief[0].prompt) != brief[0].prompt
        rows = wrapped.kept_rows(brief[:2])
        drift = drifts(wrapped.bench, wrapped.kept_rows, brief[:2], state.keys)
    assert rows == inner.kept_rows(brief[:2])
    lowest = wrapped.bench.names[0]
    assert all(found[lowest] < 1e-3 for found in drift.values())


def test_what_cannot_be_remembered_is_not_taught(pair: Make, brief: list[Fact]) -> None:
    wrapped, inner = pair("retrieval+gradient", room=2)
    long = Fact(subject="Paris", prompt="Paris is", target="the capital of the people by the river of the north")
    inner.require(long)
    for refusing in (wrapped.require, lambda fact: wrapped.learn(State(), Lesson([fact]))):
        with pytest.raises(BadInputError, match="leaves no room for an answer"):
            refusing(long)
    rule = rule_of("retrieval+gradient")
    with pytest.raises(UsageError, match="setting encoder is 'x'; it must be the folder"):
        rule.require(rule.settings(encoder="x"), Given({}, LINES, []))  # type: ignore[call-arg]
