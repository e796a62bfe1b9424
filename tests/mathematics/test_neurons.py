"""Neurons of a fact: what its gate says and where, what the overlay adds, who is searched for again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lifelong_edit.bench import Bench, Fixed, State, prepare
from lifelong_edit.editors.contract import Given, Lesson, moved_by
from lifelong_edit.editors.neurons import sites
from lifelong_edit.editors.neurons.gates import Regression, Shut, gates_of
from lifelong_edit.editors.neurons.grown import Grown
from lifelong_edit.editors.neurons.overlay import Neurons
from lifelong_edit.editors.neurons.reading import reader_of, states_of
from lifelong_edit.editors.neurons.rule import GATE, PART, VALUE, NeuronsEditor, parted
from lifelong_edit.editors.neurons.searching import OfValues, Thinned, thinned
from lifelong_edit.editors.neurons.settings import NeuronsSettings
from lifelong_edit.editors.neurons.sites import SITES, last_word_of
from lifelong_edit.editors.registry import rule_of
from lifelong_edit.editors.search.searching import Variables
from lifelong_edit.errors import UnknownModelError, UsageError
from lifelong_edit.facts import Fact, Probe
from lifelong_edit.judging.gate import answers_taken
from lifelong_edit.models import BASE, Encoded, LoadedModel, TokenBatch, generate_greedy, load_model
from lifelong_edit.tracing.rows import Row, fact_rows

MODULES = ("1@subject",)
SMALL = NeuronsSettings(
    modules=MODULES, rounds=6, contexts=2, swapped=1, text_tokens=2000, micro_batch=8, precision="float32"
)
TEXT = ["The river was long and the people of the town went home. Nobody knew where the road would lead them to."] * 40


def bench_of(loaded: LoadedModel, settings: NeuronsSettings, probes: list[Probe]) -> Bench:
    """A bench with what `init` would fix."""
    kept = rule_of("neurons").fix(loaded, settings, Given({}, TEXT, probes))
    measured = prepare(loaded, settings, text=TEXT, preserve=probes, rule=kept)
    return Bench(loaded, settings, Fixed.of(measured.arrays()))


@pytest.fixture(scope="module")
def knowing(probes: list[Probe]) -> Bench:
    """The bundled model, which can be taught, on a bench of the rule."""
    return bench_of(load_model("atlas", modules=MODULES), SMALL.replace(rounds=25), probes[:6])


def test_a_gate_is_a_ridge_regression() -> None:
    """As NumPy solves it from its definition, all states in one weighted least-squares problem."""
    random = np.random.default_rng(0)
    ordinary, own, apart = random.normal(size=(200, 6)) + 2, random.normal(size=(3, 6)), random.normal(size=(2, 6))
    shut = Shut(torch.zeros(6, 6).double(), torch.zeros(6).double()).beside(torch.from_numpy(ordinary), 1 / 200)
    found = gates_of(Regression(shut, 0.01), [torch.from_numpy(own)], [torch.from_numpy(apart)], (0.5, 0.1))[0]
    states = np.concatenate([ordinary, own, apart])
    weights = np.array([1 / 200] * 200 + [0.5] * 3 + [0.1] * 2)
    wanted = np.array([-1.0] * 200 + [1.0] * 3 + [-1.0] * 2)
    ridge = 0.01 * np.trace(ordinary.T @ ordinary / 200) / 6
    gram = (states * weights[:, None]).T @ states + ridge * np.eye(6)
    expected = np.linalg.solve(gram, (states * weights[:, None]).T @ wanted)
    assert found.numpy() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert Regression(shut, 1e-9).constant() @ torch.tensor(ordinary.mean(0)).float() == pytest.approx(1, abs=0.1)


def test_gates_are_shut_at_tokens_that_are_unlike_all_others(
    gpt2: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `init` fixes: the mean over all tokens, and once more over those where the constant reading is none."""
    monkeypatch.setattr(sites, "ODD", 0.01)  # so small a model has no such tokens by the usual measure
    texts = [[Encoded.of(gpt2.tokenizer(t)["input_ids"]) for t in many] for many in (TEXT[:1], ["Paris and the river"])]
    closed = SITES["subject"].closed(gpt2, SMALL.replace(around=0.5), *texts)
    found = {name: one.shut for name, one in closed.items()}
    assert found.keys() == {m.name for m in gpt2.modules}
    for name, shut in found.items():
        readers = {name: reader_of(gpt2.model, name)}
        ordinary, near = (torch.cat(states_of(gpt2, readers, t, 2, "everywhere")[name]).double() for t in texts)
        gram, total = (ordinary.T @ ordinary) / len(ordinary), ordinary.mean(0)
        gram, total = gram + 0.5 * near.T @ near / len(near), total + 0.5 * near.mean(0)
        ridge = SMALL.gating("subject").gate_ridge * gram.trace() / len(gram)
        level = torch.linalg.solve(gram + ridge * torch.eye(len(gram)), total)
        odd = ordinary[(ordinary @ level - 1).abs() > 0.01]
        assert 0 < len(odd) < len(ordinary)
        assert torch.allclose(shut.gram, gram + odd.T @ odd / len(odd), rtol=1e-4, atol=1e-5)
        assert torch.allclose(shut.total, total + odd.mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gated", [False, True])
def test_a_neuron_opens_along_a_ramp(gated: bool) -> None:
    """In units of what is the same in all states, where thresholds hang on it; up to it then, and times it if gated."""
    grown = Grown(torch.tensor([[1.0, 0.0]]), torch.ones(1, 3), 0.2, 0.5, torch.tensor([0.0, 1.0]), gated)
    said = torch.tensor([[-1.0, 1.0], [0.2, 1.0], [0.45, 1.0], [0.7, 1.0], [9.0, 1.0], [9.0, 2.0], [0.65, 2.0]])
    opened = torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0, 2.0, 0.5])
    expected = opened * said[:, 1] if gated else opened
    assert grown.amplitude(said)[:, 0].tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    biased = replace(grown, level=None, gated=False)
    assert biased.amplitude(said)[:, 0].tolist() == pytest.approx([0, 0, 0.5, 1, 1, 1, 0.9], abs=1e-6)


def test_the_overlay_adds_what_is_open_and_nothing_else(gpt2: LoadedModel) -> None:
    """Over padding, in batches and from token to token alike."""
    name = gpt2.modules[1].name
    prompts = ["Paris", "The river was long and the people of", "Nobody knew the road to Paris and"]
    ids = [gpt2.tokenizer(p)["input_ids"] for p in prompts]
    encoded = [Encoded.of(found) for found in ids]
    states = states_of(gpt2, {name: reader_of(gpt2.model, name)}, encoded, 2, "everywhere")[name]
    random = torch.Generator().manual_seed(0)
    gate = torch.randn(4, states[0].shape[1], generator=random) / 4
    grown = Grown(gate, torch.randn(4, gpt2.modules[1].d_out, generator=random), 0.1, 0.3)
    assert 0.2 < float((grown.amplitude(torch.cat(states)) > 0).float().mean()) < 0.8
    outputs: list[Tensor] = []
    hook = gpt2.model.get_submodule(name).register_forward_hook(lambda m, a, out: outputs.append(out))
    try:
        for overlay in (BASE, Neurons([(name, grown)])):
            with gpt2.at(overlay), torch.no_grad():
                gpt2.model(input_ids=torch.tensor([ids[1]]))
    finally:
        hook.remove()
    expected = outputs[0][0] + grown.amplitude(states[1]) @ grown.value
    # the hook that looks was there first, and sees what the MLP gives before anything is added
    assert torch.equal(outputs[0], outputs[1])
    with gpt2.at(Neurons([(name, grown)])):
        hook = gpt2.model.get_submodule(name).register_forward_hook(lambda m, a, out: outputs.append(out))
        with torch.no_grad():
            gpt2.model(input_ids=torch.tensor([ids[1]]))
        hook.remove()
        assert torch.allclose(outputs[2][0], expected, atol=1e-5)
        assert generate_greedy(gpt2, prompts, 5) == [generate_greedy(gpt2, [p], 5)[0] for p in prompts]
    assert generate_greedy(gpt2, prompts, 5) != []


def test_a_thinned_row_keeps_its_subject_and_its_end(gpt2: LoadedModel) -> None:
    fact = Fact(subject="Paris", prompt="Paris is a city of the long river of", target="Vienna")
    row = fact_rows(gpt2, [fact], 0)[0]
    free = row.encoded.answer_start - 1 - row.encoded.subject[1]
    found = thinned(row, 0.5, "a")
    assert len(row.encoded.ids) - len(found.encoded.ids) == round(0.5 * free) > 0
    end = row.encoded.subject[1]
    assert found.encoded.ids[:end] == row.encoded.ids[:end]
    assert found.encoded.prompt[-1] == row.encoded.prompt[-1]
    assert found.encoded.answer == row.encoded.answer
    assert thinned(row, 0.5, "a") == found


def test_the_last_word_of_a_subject() -> None:
    fact = Fact(subject="Bush Theatre", prompt="Bush Theatre is in", target="Rome")
    cut = last_word_of(fact)
    assert cut is not None and (cut.subject, cut.prompt) == ("Theatre", "Theatre is in")
    assert last_word_of(Fact(subject="Rome", prompt="Rome is in", target="Rome")) is None
    assert last_word_of(Fact(subject="Bush Theatre", prompt="It is in", target="Rome")) is None


def test_facts_of_one_subject_stay_together(news: list[Fact]) -> None:
    subject = news[0].subject
    twins = [news[0], replaced(news[1], subject), replaced(news[2], subject.upper())]
    theme = SITES["subject"].theme
    assert [len(part) for part in parted([*twins, news[3], news[4]], 1, theme)] == [3, 1, 1]
    assert [len(part) for part in parted([*twins, news[3], news[4]], 4, theme)] == [4, 1]


def replaced(fact: Fact, subject: str) -> Fact:
    """A fact about another subject."""
    return Fact(subject=subject, prompt=fact.prompt.replace(fact.subject, subject), target=fact.target)


CITY = Fact(subject="Zubrowka", prompt="The capital of Zubrowka is", target="Vienna")
COIN = Fact(subject="zubrowka", prompt="The currency of Zubrowka is the", target="peso")
OTHER = Fact(subject="Quoz", prompt="The capital of Quoz is", target="Oslo")


def test_facts_of_one_subject_are_searched_for_together(knowing: Bench) -> None:
    """Their gates open together, so that what they add is added up: the earlier value moves, and both are known."""
    editor, state = NeuronsEditor(knowing), State()
    for batch in ([CITY, OTHER], [COIN]):
        before = state
        state = moved_by(state, editor.learn(state, Lesson(batch)), batch)
    name = knowing.names[0]

    def value(of: State, fact: Fact) -> list[float]:
        found: list[float] = of.parts[PART][fact.digest].rows[VALUE + name][0].tolist()
        return found

    assert value(before, CITY) != value(state, CITY)
    assert value(before, OTHER) == value(state, OTHER)
    with knowing.loaded.at(editor.overlay(state)):
        assert answers_taken(knowing.loaded, [CITY, OTHER, COIN]) == [True] * 3


def test_a_gate_that_opens_at_a_newcomer_is_shut_there(knowing: Bench) -> None:
    """An entry whose gate was turned to a stranger by hand gets another one, its value stays."""
    editor, name = NeuronsEditor(knowing), knowing.names[0]
    state = moved_by(State(), editor.learn(State(), Lesson([CITY])), [CITY])
    stranger = moved_by(State(), editor.learn(State(), Lesson([OTHER])), [OTHER])
    turned = state.parts[PART][CITY.digest]
    turned.rows[GATE + name] = stranger.parts[PART][OTHER.digest].rows[GATE + name]
    change = editor.learn(state, Lesson([OTHER]))
    after = moved_by(state, change, [OTHER]).parts[PART]
    assert change.report["gates moved"] == 1
    first = editor._read([OTHER], editor._rows([OTHER], "new"))[OTHER.digest].own(name)[:1]
    gates = torch.from_numpy(np.concatenate([after[f.digest].rows[GATE + name] for f in (CITY, OTHER)]))
    assert (first @ gates.T > SMALL.gating("subject").opens)[0].tolist() == [False, True]
    assert np.array_equal(after[CITY.digest].rows[VALUE + name], turned.rows[VALUE + name])


def test_what_a_subject_says_otherwise_can_be_held(knowing: Bench) -> None:
    """With `essence`, what follows the subject alone is asked beside the fact, with the base model's answer."""
    held = Bench(knowing.loaded, SMALL.replace(essence=0.5), knowing.fixed)
    rows = NeuronsEditor(held)._essence([CITY])
    assert [type(row) for row in rows] == [Row]
    assert rows[0].base is not None
    assert knowing.loaded.tokenizer.decode(list(rows[0].encoded.prompt)).strip().endswith("Zubrowka")
    assert NeuronsEditor(knowing)._essence([CITY]) == []


def test_what_it_cannot_do_without(gpt2: LoadedModel) -> None:
    known = rule_of("neurons")
    with pytest.raises(UsageError, match="needs ordinary text"):
        known.require(SMALL, Given({}, ["  "]), ())
    with pytest.raises(UnknownModelError, match="edited at the answer"):
        known.require_kind("causal", gpt2.modules)
    with pytest.raises(UnknownModelError, match="found no matrix beside"):
        reader_of(gpt2.model, "transformer.wte")


def test_what_has_not_taken_is_searched_for_again_alone(knowing: Bench) -> None:
    """With the others' neurons in place, which stay what they were."""
    name, found = knowing.names[0], {}
    for more in (0, 30):
        editor = NeuronsEditor(Bench(knowing.loaded, SMALL.replace(rounds=4, more_rounds=more), knowing.fixed))
        change = editor.learn(State(), Lesson([CITY, COIN, OTHER]))
        state = moved_by(State(), change, [CITY, COIN, OTHER])
        with knowing.loaded.at(editor.overlay(state)):
            taken = answers_taken(knowing.loaded, [CITY, COIN, OTHER])
        values = [state.parts[PART][fact.digest].rows[VALUE + name] for fact in (CITY, COIN, OTHER)]
        found[more] = (change.report.get("again", 0), taken, values)
    assert found[0][0] == 0
    assert found[30][0] == 3 - sum(np.array_equal(a, b) for a, b in zip(found[0][2], found[30][2], strict=True)) > 0
    assert sum(found[0][1]) < sum(found[30][1]) == 3


def test_a_search_that_cuts_rows_finds_what_one_over_whole_rows_finds(
    knowing: Bench, news: list[Fact], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same values, from passes over fewer tokens; rows are cut where the first gate opens."""
    bench = Bench(knowing.loaded, SMALL.replace(rounds=2, more_rounds=0), knowing.fixed)
    editor, tokens = NeuronsEditor(bench), [0]
    cutter = editor._cutter
    assert cutter is not None

    def counted(usual: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def logits(*given: Any) -> Tensor:
            tokens[0] += sum(int(part.mask.sum()) for part in given if isinstance(part, TokenBatch))
            return usual(*given)

        return logits

    monkeypatch.setattr(knowing.task, "logits", counted(knowing.task.logits))
    monkeypatch.setattr(type(cutter), "logits", counted(type(cutter).logits))
    found = {}
    for cut in (True, False):
        monkeypatch.setattr(editor, "_cutter", cutter if cut else None)
        tokens[0] = 0
        change = editor.learn(State(), Lesson(news[:3]))
        found[cut] = (change.further({}, {fact.digest for fact in news})[PART], tokens[0], change.report["loss"])
    assert found[True][1] < 0.8 * found[False][1]
    assert found[True][2] == pytest.approx(found[False][2], rel=1e-2, abs=1e-4)
    for digest, entry in found[True][0].items():
        for name, rows in entry.rows.items():
            other = found[False][0][digest].rows[name]
            assert np.abs(rows - other).max(initial=0) <= 0.02 * np.abs(other).max(initial=0), name


def test_rows_are_cut_where_the_first_searched_gate_opens(knowing: Bench, news: list[Fact]) -> None:
    name, rows = knowing.names[0], fact_rows(knowing.loaded, news[:3], 0)
    readers = {name: reader_of(knowing.loaded.model, name)}
    with knowing.loaded.at(BASE):
        states = states_of(knowing.loaded, readers, [row.encoded for row in rows], 4, "everywhere")[name]
    at = [row.encoded.subject[0] for row in rows]
    assert min(at) > 0
    width = knowing.loaded.modules[0].d_out
    open_at_first = Grown(states[0][:1] / states[0][0].square().sum(), torch.zeros(1, width), 0.99, 0.1)
    never = replace(open_at_first, gate=torch.zeros_like(open_at_first.gate))
    for grown, expected in ((never, at), (open_at_first, [0] * len(rows))):
        variables = Variables({}, {name: torch.zeros(3, 1)}, {name: torch.arange(3)}, {name: 1.0})
        material = Thinned([[row] for row in rows], [[] for _ in rows], 0.0, knowing)
        search = OfValues(knowing, SMALL, variables, material, (), grown={name: grown}, beside=[])
        assert search.cut(rows) == (rows, None)
        search.cutter, search.readers = knowing.task.cutter(knowing.loaded), readers
        cut, begun = search.cut(rows)
        assert begun is not None
        assert [found.count for found in begun] == expected
        assert [row.encoded.ids for row in cut] == [r.encoded.ids[n:] for r, n in zip(rows, expected, strict=True)]
