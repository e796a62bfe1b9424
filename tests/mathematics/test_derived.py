"""Preserved prompts made from the facts: which pairs they ask for, and what the base model says to them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lifelong_edit.bench import Bench, State, prepare
from lifelong_edit.editors.contract import Lesson, moved_by
from lifelong_edit.editors.ridge.editor import RidgeEditor
from lifelong_edit.facts import Fact, Probe
from lifelong_edit.models import LoadedModel
from lifelong_edit.tracing import derived
from lifelong_edit.tracing.derived import derived_prompts, derived_rows
from lifelong_edit.tracing.preservation import answer_of, base_answers
from lifelong_edit.tracing.trace import trace
from tests.mathematics.conftest import BASIC, MakeBench, MakeEditor, editor_of, whole_of

NAMES = ("Paris", "London", "Vienna", "Kenya", "Japan", "Malmö")
RELATIONS = {
    "capital": ("The capital of {} is", "{} has the capital"),
    "river": ("The river of {} is", "{0} lies, as all in {0} know, at the"),
    "ruler": ("{} is ruled by",),
}


def about(name: str, relation: str, target: str = "Sydney") -> Fact:
    prompt, *others = (pattern.format(name) for pattern in RELATIONS[relation])
    return Fact(subject=name, prompt=prompt, target=target, relation=relation, rephrases=tuple(others))


@pytest.fixture
def facts() -> list[Fact]:
    """Six facts of three relations: of the eighteen pairs twelve are free."""
    return [about(name, relation) for name, relation in zip(NAMES, [*RELATIONS] * 2, strict=True)]


def pair(probe: Probe) -> tuple[str, str]:
    return str(probe.subject).casefold(), str(probe.relation).casefold()


PAIRS = st.lists(
    st.tuples(st.sampled_from([*NAMES, "PARIS", "malmö"]), st.sampled_from([*RELATIONS])), min_size=1, max_size=16
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(pairs=PAIRS, count=st.integers(0, 60), seed=st.integers(0, 5))
def test_never_what_a_fact_speaks_of(pairs: list[tuple[str, str]], count: int, seed: int) -> None:
    found_facts = [about(name, relation) for name, relation in pairs]
    found = derived_prompts(found_facts, count, seed)
    spoken = {(name.casefold(), relation) for name, relation in pairs}
    texts = {pattern.format(name) for name, _ in pairs for patterns in RELATIONS.values() for pattern in patterns}
    assert not spoken & {pair(probe) for probe in found}
    assert len(found) <= count
    assert len({probe.prompt for probe in found}) == len(found)
    for probe in found:
        assert probe.target is None
        assert probe.prompt in texts, "one of the facts' own prompts, with one of their subjects wherever it names one"
        assert str(probe.subject) in probe.prompt


def test_all_free_pairs_are_found_and_no_other(facts: list[Fact]) -> None:
    found = derived_prompts(facts, 500, 0)
    assert len({pair(probe) for probe in found}) == 12
    full = [about(name, relation) for name in NAMES for relation in RELATIONS]
    assert derived_prompts(full, 500, 0) == []
    assert derived_prompts(full[:-1], 500, 0) != []  # the check can fail: one pair is free
    assert derived_prompts([], 5) == []
    assert derived_prompts(facts, 0) == []


def test_a_pair_that_only_a_fact_beyond_the_sample_speaks_of_is_left_out(
    facts: list[Fact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(derived, "SAMPLE", 3)
    more = [*facts, *(about(name, "capital") for name in NAMES)]
    for seed in range(20):
        assert all(pair(probe)[1] != "capital" for probe in derived_prompts(more, 50, seed))


def test_facts_without_relation_or_mention(facts: list[Fact]) -> None:
    bare = [msgspec.structs.replace(fact, relation=None) for fact in facts]
    found = derived_prompts(bare, 500, 0)
    assert found
    taught = {text for fact in bare for text in (fact.prompt, *fact.rephrases)}
    assert not taught & {probe.prompt for probe in found}
    mute = [msgspec.structs.replace(fact, prompt="It is", rephrases=()) for fact in facts]
    assert derived_prompts(mute, 500, 0) == []


def test_a_function_of_the_set_of_facts_and_of_the_identity(facts: list[Fact]) -> None:
    usual = derived_prompts(facts, 8, 1, "state")
    assert len(usual) == 8
    assert derived_prompts(facts[::-1], 8, 1, "state") == usual
    assert derived_prompts([*facts[3:], *facts[:3]], 8, 1, "state") == usual
    assert any(derived_prompts(facts, 8, seed, "state") != usual for seed in range(2, 6))
    assert any(derived_prompts(facts, 8, 1, state) != usual for state in "abcd")


def test_answers_are_the_base_models_wherever_the_model_stands(loaded: LoadedModel, facts: list[Fact]) -> None:
    s = BASIC
    options: dict[str, Any] = {"tokens": s.preserved_tokens, "weight": s.preserved_weight, "micro_batch": s.micro_batch}
    rows = derived_rows(loaded, facts, 8, 0, **options)
    encoded = answer_of(loaded, derived_prompts(facts, 8, 0), s.preserved_tokens)
    assert [row.encoded for row in rows] == encoded
    assert all((row.kind, row.weight, row.fact) == ("preserved", s.preserved_weight, None) for row in rows)
    assert all(end > start for start, end in (row.encoded.subject for row in rows))
    g = torch.Generator().manual_seed(1)
    moved = {m.name: torch.randn(m.d_in, m.d_out, generator=g) * 0.1 for m in loaded.modules}
    with loaded.at(moved):
        weights = {n: loaded.model.get_submodule(n).weight.clone() for n in moved}
        again = derived_rows(loaded, facts, 8, 0, **options)
        assert all(torch.equal(loaded.model.get_submodule(n).weight, w) for n, w in weights.items())
        edited = base_answers(loaded, encoded, s.micro_batch)
    for one, other in zip(rows, again, strict=True):
        assert one.encoded == other.encoded
        assert one.base is not None and other.base is not None
        assert one.base.top_logp.tobytes() == other.base.top_logp.tobytes()
    # The check can fail: as it stands it says something else.
    assert any(a.top_logp.tobytes() != r.base.top_logp.tobytes() for a, r in zip(edited, rows, strict=True) if r.base)
    assert float(trace(loaded, rows, 8).losses.abs().max()) < 1e-5


@pytest.fixture
def unowned(loaded: LoadedModel, sentences: list[str], make_bench: MakeBench) -> MakeEditor:
    """Makes an editor of a store whose owner gave no preserved prompts."""
    base = make_bench().settings
    fixed = prepare(loaded, base, text=[" ".join(sentences * 20)])

    def make(**changes: object) -> RidgeEditor:
        return editor_of(Bench(loaded, base.replace(**changes), fixed))

    return make


def kept(report: dict[str, object]) -> object:
    rows = report["rows"]
    assert isinstance(rows, dict)
    return rows["preserved"]


def test_a_batch_without_preserved_prompts_holds_derived_ones(unowned: MakeEditor, facts: list[Fact]) -> None:
    state = State()
    first = unowned(preserved=5).learn(state, Lesson(facts))
    assert kept(first.report) == 5
    assert kept(unowned(preserved=0).learn(state, Lesson(facts)).report) == 0
    state = moved_by(state, first, facts)
    # Subjects of live facts as well, and none of them of what is live: here one relation is taught of all.
    assert kept(unowned(preserved=99).learn(state, Lesson([about("Belgrade", "river")])).report) not in (0, 99)
    full = [about(name, "ruler") for name in NAMES]
    assert kept(unowned(preserved=5).learn(State(), Lesson(full)).report) == 0


def test_a_reconsolidation_without_preserved_prompts_holds_derived_ones(unowned: MakeEditor, facts: list[Fact]) -> None:
    editor = unowned(reconsolidation_passes=2)
    held = editor.relearn(facts)
    assert kept(held.report) == len(facts)
    other = whole_of(editor.relearn(facts[::-1]))
    bare = unowned(reconsolidation_passes=2, reconsolidation_preserved=0).relearn(facts)
    assert kept(bare.report) == 0
    for name, shift in whole_of(held).items():
        assert torch.equal(shift, other[name])
        assert not torch.equal(shift, whole_of(bare)[name])
    few = unowned(reconsolidation_passes=1, reconsolidation_preserved=2).relearn(facts)
    assert kept(few.report) == 2
