"""Which rows enter a solve: retired facts nowhere, draws a function of seed, state and batch, subjects left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import pytest
import torch

from lifelong_edit.bench import Bench, State
from lifelong_edit.editors.contract import Change, Lesson, moved_by
from lifelong_edit.editors.ridge.editor import RidgeEditor
from lifelong_edit.editors.ridge.held import Preservation
from lifelong_edit.editors.ridge.passes import fact_keys
from lifelong_edit.editors.ridge.rows import rows_to_be_ready_with, select_rows
from lifelong_edit.editors.ridge.settings import RidgeSettings
from lifelong_edit.errors import StepRefusedError
from lifelong_edit.facts import Fact
from lifelong_edit.numerics.lowrank import Gram
from lifelong_edit.stores import FactKeys, materialise
from lifelong_edit.tracing.rows import Row, draw, drawn_rows, fact_rows, phrasings_of
from lifelong_edit.tracing.trace import trace
from tests.mathematics.conftest import MakeBench, MakeEditor, shift_of


@pytest.fixture
def state(make_editor: MakeEditor, news: list[Fact]) -> State:
    """Eight live facts with their keys."""
    first = make_editor(passes=1, phrasings=1).learn(State(), Lesson(news[:8]))
    return moved_by(State(digest="eight"), first, news[:8])


def selected(
    bench: Bench, state: State, facts: Sequence[Fact], live: Sequence[str] = (), hidden: frozenset[str] = frozenset()
) -> list[Row]:
    """The rows of a batch, with the settings of the bench."""
    assert isinstance(bench.settings, RidgeSettings)
    return select_rows(bench, bench.settings, state, Lesson(facts, hidden=hidden), live)


def rehearsed(bench: Bench, state: State, facts: list[Fact]) -> set[str | None]:
    """Digests of the facts among the rehearsal rows."""
    return {r.fact for r in selected(bench, state, facts, sorted(state.live)) if r.kind == "rehearsal"}


def watched(
    monkeypatch: pytest.MonkeyPatch, editor: RidgeEditor, state: State, facts: list[Fact], retire: list[str]
) -> tuple[set[str], set[str | None], Change]:
    """Digests in P and among the rows of a batch, and what it changes."""
    in_p: list[set[str]] = []
    usual = Preservation.gram

    def gram(
        self: Preservation,
        module: str,
        s: RidgeSettings,
        keys: float,
        live: Mapping[str, FactKeys],
        subjects: frozenset[str],
        coming: int = 0,
    ) -> Gram:
        in_p.append(set(live))
        return usual(self, module, s, keys, live, subjects, coming)

    with monkeypatch.context() as watching:
        watching.setattr(Preservation, "gram", gram)
        change = editor.learn(state, Lesson(facts, retire))
    assert len(in_p) == len(editor.bench.names)
    assert all(p == in_p[0] for p in in_p)
    return in_p[0], set(change.keys()), change


def test_a_retired_fact_is_neither_in_p_nor_rehearsed(
    make_editor: MakeEditor, state: State, news: list[Fact], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = [news[2].digest, news[5].digest]
    editor = make_editor(rehearse=3)
    preserved, rows, change = watched(monkeypatch, editor, state, news[8:10], gone)
    assert not preserved & set(gone)
    assert not rows & set(gone)
    assert len(preserved) == 8 - 2 - 3
    assert preserved.isdisjoint(rows)
    # Rehearse all that may be: still not the retired ones.
    assert watched(monkeypatch, make_editor(rehearse=99), state, news[8:10], gone)[0] == set()
    assert rehearsed(editor.bench, state, news[8:10]) <= set(state.live)
    # The check can fail: not retired, they are in P or among the rows, and the step is another one.
    kept, kept_rows, other = watched(monkeypatch, editor, state, news[8:10], [])
    assert set(gone) <= kept | {r for r in kept_rows if r}
    name = editor.bench.names[0]
    assert not np.array_equal(materialise(shift_of(change)[name]), materialise(shift_of(other)[name]))


def test_rehearsal_depends_on_seed_state_and_batch_and_on_nothing_else(
    make_bench: MakeBench, state: State, news: list[Fact]
) -> None:
    bench = make_bench()
    first = rehearsed(bench, state, news[8:10])
    assert len(first) == 3
    torch.manual_seed(5)
    np.random.default_rng(5)
    backwards = dataclasses.replace(state, live=dict(reversed(state.live.items())), shifts={})
    assert rehearsed(bench, backwards, news[8:10]) == first
    draws = {
        "seed": [rehearsed(make_bench(seed=s), state, news[8:10]) for s in range(1, 6)],
        "state": [rehearsed(bench, dataclasses.replace(state, digest=str(d)), news[8:10]) for d in range(5)],
        "batch": [rehearsed(bench, state, [news[8], news[i]]) for i in (10, 11)],
    }
    for part, others in draws.items():
        assert any(other != first for other in others), part


def test_a_draw_is_distinct_ascending_and_fixed() -> None:
    found = draw(50, 10, "a", 1)
    assert found == sorted(set(found)) == draw(50, 10, "a", 1) != draw(50, 10, "a", 2)
    assert len(found) == 10
    assert draw(3, 10, "a") == [0, 1, 2]
    # A change of these would change the digest of every step ever committed.
    assert draw(1000, 4, "golden") == [212, 519, 782, 806]


def test_phrasings_are_chosen_by_the_fact_and_never_its_prompt(news: list[Fact]) -> None:
    fact = msgspec.structs.replace(news[0], rephrases=("a", "b", "a", news[0].prompt, "c", "d"))
    assert phrasings_of(fact, 9) == ["a", "b", "c", "d"]
    assert len(phrasings_of(fact, 2)) == 2
    assert phrasings_of(fact, 0) == []


def preserved_subjects(bench: Bench, rows: list[Row]) -> set[str]:
    """Subjects of the preserved prompts among the rows."""
    prompts = {
        tuple(p): probe.subject or "" for p, probe in zip(bench.preserved.prompts, bench.preserved.probes, strict=True)
    }
    return {prompts[r.encoded.ids[: r.encoded.answer_start]].casefold() for r in rows if r.kind == "preserved"}


def test_preserved_prompts_about_an_edited_subject_are_left_out(
    make_bench: MakeBench, state: State, news: list[Fact]
) -> None:
    """Subjects of the batch and of all live facts, whatever their case; others stay."""
    bench = make_bench(preserved=99)
    nothing = State()
    assert preserved_subjects(bench, selected(bench, nothing, news[8:10])) >= {"paris", "london the great"}
    found = preserved_subjects(bench, selected(bench, nothing, [news[0]]))
    assert "paris" not in found
    assert "london the great" in found
    live = preserved_subjects(bench, selected(bench, state, news[8:10]))
    guards = {bench.preserved.probes[i].subject for i in bench.preserved.guards(frozenset())}
    assert len(guards) == 1
    assert live == {f"none {i}" for i in range(8)} - guards
    hidden = selected(bench, nothing, news[8:10], hidden=frozenset({"none 3"}))
    assert "none 3" not in preserved_subjects(bench, hidden)


def test_preserved_rows_are_the_nearest_and_a_draw(make_bench: MakeBench, news: list[Fact]) -> None:
    bench = make_bench()
    directions = bench.preserved.directions
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(len(directions)))
    rows = bench.preserved.rows(4, directions[[5]], 1.5, frozenset(), "x")
    assert len(rows) == 4
    ranked = torch.argsort(directions @ directions[5], descending=True).tolist()
    assert ranked[0] == 5
    ranked = [i for i in ranked if i not in bench.preserved.guard]
    wanted = {bench.preserved.row(i, 1.5).encoded for i in ranked[:2]}
    assert wanted <= {r.encoded for r in rows}
    assert all(r.weight == 1.5 for r in rows)
    others = [{r.encoded for r in bench.preserved.rows(4, directions[[5]], 1.5, frozenset(), i)} for i in range(6)]
    assert any(o != others[0] for o in others)
    assert bench.preserved.rows(0, directions[[5]], 1.5, frozenset()) == []


def test_keys_that_are_no_numbers_are_refused_and_not_stored_as_zeros(make_bench: MakeBench, news: list[Fact]) -> None:
    bench = make_bench()
    rows = selected(bench, State(), news[:2])
    traced = trace(bench.loaded, rows, 8)
    conflict = bench.conflict_of(news[:2])
    assert set(fact_keys(bench, traced, rows, conflict)) == {f.digest for f in news[:2]}
    traced.keys[bench.names[-1]][0, 0] = float("nan")
    with pytest.raises(StepRefusedError, match="not finite"):
        fact_keys(bench, traced, rows, conflict)


def test_a_rule_is_made_ready_with_new_facts_and_the_prompt_of_each_recalled_one(
    make_bench: MakeBench, state: State, news: list[Fact]
) -> None:
    rows = selected(make_bench(rehearse=3), state, news[8:10], sorted(state.live))
    new = [row for row in rows if row.kind == "new"]
    recalled = [row for row in rows if row.kind == "rehearsal"]
    assert len(new) == 2 * 3
    assert len(recalled) == 3 * 3
    assert rows_to_be_ready_with(rows, recalls=True) == [*new, *recalled[::3]]
    assert rows_to_be_ready_with(rows, recalls=False) == new


def test_phrasings_are_drawn_afresh_with_the_weight_of_all(make_bench: MakeBench, news: list[Fact]) -> None:
    facts = [
        msgspec.structs.replace(f, rephrases=tuple(f"{f.subject}, {i}," for i in range(i % 5)))
        for i, f in enumerate(news)
    ]
    rows = fact_rows(make_bench().loaded, facts, 4)
    passes = [drawn_rows(rows, 2, "seed", number) for number in range(20)]
    assert drawn_rows(rows, 2, "seed", 3) == passes[3] != passes[4]
    for found in passes:
        for fact in facts:
            own, all_own = ([r for r in of if r.fact == fact.digest] for of in (found, rows))
            assert own[0] == all_own[0], "the prompt, as it is"
            assert len(own) == 1 + min(2, len(fact.rephrases))
            assert sum(row.weight for row in own) == pytest.approx(sum(row.weight for row in all_own))
            assert len({row.encoded.ids for row in own}) == len(own)
    met = {row.encoded.ids for found in passes for row in found}
    assert met == {row.encoded.ids for row in rows}, "in time each phrasing has its turn"
    assert drawn_rows(rows, 4, "seed") == rows
    assert [row.fact for row in drawn_rows(rows, 0)] == [fact.digest for fact in facts]
