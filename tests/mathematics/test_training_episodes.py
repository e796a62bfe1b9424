"""How facts are divided in training: no subject on two sides."""

from __future__ import annotations

from typing import cast

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lifelong_edit.bench import State
from lifelong_edit.editors.contract import Lesson
from lifelong_edit.editors.ridge.editor import RidgeEditor
from lifelong_edit.editors.ridge.rows import select_rows
from lifelong_edit.facts import Fact, Probe
from lifelong_edit.tasks import BaseAnswer
from lifelong_edit.tracing.preservation import PreservedPrompts
from lifelong_edit.tracing.rows import Row
from lifelong_edit.training.episodes import TrainSettings, make_episode, split_by_subject, taught
from tests.mathematics.conftest import MakeBench, MakeEditor

SUBJECTS = [f"Subject {i}" for i in range(40)]
SMALL = TrainSettings(batch_size=4, batches=3, probes=6)


def facts_about(subjects: list[str]) -> list[Fact]:
    """One fact per subject, relations and true answers taken in turn."""
    return [
        Fact(
            subject=s,
            prompt=f"{s} is in ({i})",
            target=f"New {i % 3}",
            target_true=f"Old {i % 4}",
            relation=f"r{i % 2}",
            rephrases=(f"{s} lies in", f"The place of {s} is", f"{s} is found in"),
        )
        for i, s in enumerate(subjects)
    ]


@pytest.fixture
def preserved(make_bench: MakeBench) -> PreservedPrompts:
    """Prompts about all subjects, with the answers of one real prompt: only subjects are looked at here."""
    bench = make_bench()
    answer: BaseAnswer = bench.preserved.answers[0]
    probes = [
        Probe(prompt=f"{s} was in", target=f"Old {i % 4}", subject=s.upper(), relation=f"r{i % 2}")
        for i, s in enumerate(SUBJECTS)
    ]
    directions = torch.nn.functional.normalize(torch.randn(40, 128, generator=torch.Generator().manual_seed(0)), dim=1)
    prompts = [list(bench.loaded.tokenizer(p.prompt).input_ids) for p in probes]
    return PreservedPrompts(probes, prompts, [(0, 1)] * 40, [answer] * 40, [bench.preserved.keys[0]] * 40, directions)


@settings(max_examples=50, deadline=None)
@given(
    subjects=st.lists(st.sampled_from([*SUBJECTS, "subject 1", "SUBJECT 2"]), min_size=1, max_size=60),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_no_subject_is_in_both_halves(subjects: list[str], share: float, seed: int) -> None:
    facts = facts_about(subjects)
    learn, held = split_by_subject(facts, share, seed)
    assert {f.subject.casefold() for f in learn}.isdisjoint(f.subject.casefold() for f in held)
    assert sorted(f.digest for f in [*learn, *held]) == sorted(f.digest for f in facts)
    distinct = len({s.casefold() for s in subjects})
    assert len({f.subject.casefold() for f in held}) == round(share * distinct)
    assert split_by_subject(facts, share, seed) == (learn, held)


def test_a_split_by_fact_would_be_noticed() -> None:
    facts = facts_about([*SUBJECTS[:10], *(s.lower() for s in SUBJECTS[:10])])
    learn, held = facts[::3], [f for i, f in enumerate(facts) if i % 3]
    assert not {f.subject.casefold() for f in learn}.isdisjoint(f.subject.casefold() for f in held)


def test_the_phrasing_that_is_asked_is_no_row() -> None:
    for fact in facts_about(SUBJECTS[:9]):
        for number in range(4):
            found = taught(fact, number)
            assert found.asked in fact.rephrases
            assert {found.asked, *found.fact.rephrases} == set(fact.rephrases)
            assert found.asked not in found.fact.rephrases
            assert found == taught(fact, number)
    assert len({taught(facts_about(["A"])[0], number).asked for number in range(20)}) == 3
    bare = msgspec.structs.replace(fact, rephrases=())
    assert taught(bare).asked == bare.prompt


@pytest.mark.parametrize("number", range(5))
def test_probes_are_about_other_subjects_and_are_no_rows(
    make_editor: MakeEditor, preserved: PreservedPrompts, number: int
) -> None:
    episode = make_episode(facts_about(SUBJECTS), preserved, SMALL, number)
    edited = {c.fact.subject.casefold() for batch in episode.batches for c in batch}
    subjects = {cast(str, preserved.probes[i].subject).casefold() for i in episode.probes}
    assert [len(b) for b in episode.batches] == [4, 4, 4]
    assert len(episode.probes) == len(set(episode.probes)) > 3
    assert subjects.isdisjoint(edited)
    assert subjects == episode.hidden
    editor = make_editor(preserved=99)
    editor.bench.preserved = preserved
    batch = [c.fact for c in episode.batches[0]]
    rows = {r.encoded.ids[: r.encoded.answer_start] for r in _kept(editor, batch, episode.hidden)}
    asked = {tuple(preserved.prompts[i]) for i in episode.probes}
    assert rows.isdisjoint(asked)
    assert len(rows) == 40 - 4 - len(episode.hidden)
    # Without `hidden` the probes would be rows: the very thing that made a network worthless.
    assert not {r.encoded.ids[: r.encoded.answer_start] for r in _kept(editor, batch, frozenset())}.isdisjoint(asked)


def _kept(editor: RidgeEditor, batch: list[Fact], hidden: frozenset[str]) -> list[Row]:
    found = select_rows(editor.bench, editor.settings, State(), Lesson(batch, hidden=hidden), [])
    return [r for r in found if r.kind == "preserved"]


def test_some_probes_have_a_true_answer_that_is_edited_away_and_some_do_not(preserved: PreservedPrompts) -> None:
    """The same relation always: random prompts of other relations were too easy, and true neighbours collapsed."""
    facts = facts_about(SUBJECTS)[:16]
    episode = make_episode(facts, preserved, msgspec.structs.replace(SMALL, batches=1, probes=4), 0)
    chosen = [c.fact for batch in episode.batches for c in batch]
    answers = {(f.relation, f.target_true) for f in chosen}
    probes = [preserved.probes[i] for i in episode.probes]
    assert {p.relation for p in probes} <= {f.relation for f in chosen}
    assert 0 < sum((p.relation, p.target) in answers for p in probes) < len(probes)


def test_episodes_differ_and_are_a_function_of_seed_and_number(preserved: PreservedPrompts) -> None:
    facts = facts_about(SUBJECTS)
    one = make_episode(facts, preserved, SMALL, 1)
    assert make_episode(facts, preserved, SMALL, 1) == one
    assert make_episode(facts, preserved, SMALL, 2) != one
    assert make_episode(facts, preserved, msgspec.structs.replace(SMALL, seed=1), 1) != one
