"""Which rows enter a solve: retired facts nowhere, draws a function of seed, state and batch, subjects left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
import torch

from lifelong_edit.editors.ridge import batch as batchstep
from lifelong_edit.editors.ridge.batch import Bench, SolveState, edit_batch, fact_keys, select_rows
from lifelong_edit.editors.ridge.conflictkeys import conflict_of
from lifelong_edit.errors import StepRefusedError
from lifelong_edit.facts import Fact
from lifelong_edit.numerics.grams import FactKeys
from lifelong_edit.stores.tensors import materialise
from lifelong_edit.tracing.rows import Row, draw, drawn_rows, fact_rows, phrasings_of
from lifelong_edit.tracing.trace import trace

MakeBench = Callable[..., Bench]


@pytest.fixture
def state(make_bench: MakeBench, news: list[Fact]) -> SolveState:
    """Eight live facts with their keys."""
    first = edit_batch(make_bench(passes=1, phrasings=1), SolveState({}, {}, {}), news[:8])
    shifts = {n: torch.from_numpy(materialise(s).copy()) for n, s in first.shift.items()}
    return SolveState(shifts, {f.digest: f for f in news[:8]}, first.keys, {}, "eight")


def rehearsed(bench: Bench, state: SolveState, facts: list[Fact]) -> set[str | None]:
    """Digests of the facts among the rehearsal rows."""
    return {r.fact for r in select_rows(bench, state, facts, sorted(state.live)) if r.kind == "rehearsal"}


def watched(
    monkeypatch: pytest.MonkeyPatch, bench: Bench, state: SolveState, facts: list[Fact], retire: list[str]
) -> tuple[set[str], set[str | None], batchstep.Proposal]:
    """Digests in P and among the rows of a batch, and its proposal."""
    in_p: list[set[str]] = []
    usual = Bench.preservation

    def preservation(
        self: Bench, module: str, live: dict[str, FactKeys], subjects: frozenset[str] = frozenset()
    ) -> torch.Tensor:
        in_p.append(set(live))
        return usual(self, module, live, subjects)

    monkeypatch.setattr(Bench, "preservation", preservation)
    proposal = edit_batch(bench, state, facts, retire=retire)
    monkeypatch.setattr(Bench, "preservation", usual)
    assert all(p == in_p[0] for p in in_p)
    return in_p[0], set(proposal.keys), proposal


def test_a_retired_fact_is_neither_in_p_nor_rehearsed(
    make_bench: MakeBench, state: SolveState, news: list[Fact], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = [news[2].digest, news[5].digest]
    bench = make_bench(rehearse=3)
    preserved, rows, proposal = watched(monkeypatch, bench, state, news[8:10], gone)
    assert not preserved & set(gone)
    assert not rows & set(gone)
    assert len(preserved) == 8 - 2 - 3
    assert preserved.isdisjoint(rows)
    # Rehearse all that may be: still not the retired ones.
    assert watched(monkeypatch, make_bench(rehearse=99), state, news[8:10], gone)[0] == set()
    assert rehearsed(bench, state, news[8:10]) <= set(state.live)
    # The check can fail: not retired, they are in P or among the rows, and the step is another one.
    kept, kept_rows, other = watched(monkeypatch, bench, state, news[8:10], [])
    assert set(gone) <= kept | {r for r in kept_rows if r}
    name = bench.names[0]
    assert not np.array_equal(materialise(proposal.shift[name]), materialise(other.shift[name]))


def test_rehearsal_depends_on_seed_state_and_batch_and_on_nothing_else(
    make_bench: MakeBench, state: SolveState, news: list[Fact]
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
    make_bench: MakeBench, state: SolveState, news: list[Fact]
) -> None:
    """Subjects of the batch and of all live facts, whatever their case; others stay."""
    bench = make_bench(preserved=99)
    nothing = SolveState({}, {}, {})
    assert preserved_subjects(bench, select_rows(bench, nothing, news[8:10], [])) >= {"paris", "london the great"}
    found = preserved_subjects(bench, select_rows(bench, nothing, [news[0]], []))
    assert "paris" not in found
    assert "london the great" in found
    live = preserved_subjects(bench, select_rows(bench, state, news[8:10], []))
    guards = {bench.preserved.probes[i].subject for i in bench.preserved.guards(frozenset())}
    assert len(guards) == 1
    assert live == {f"none {i}" for i in range(8)} - guards
    hidden = select_rows(bench, nothing, news[8:10], [], frozenset({"none 3"}))
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
    rows = select_rows(bench, SolveState({}, {}, {}), news[:2], [])
    traced = trace(bench.loaded, rows, 8)
    conflict = conflict_of(bench, news[:2])
    assert set(fact_keys(bench, traced, rows, conflict)) == {f.digest for f in news[:2]}
    traced.keys[bench.names[-1]][0, 0] = float("nan")
    with pytest.raises(StepRefusedError, match="not finite"):
        fact_keys(bench, traced, rows, conflict)


def test_phrasings_are_drawn_afresh_with_the_weight_of_all(make_bench: MakeBench, news: list[Fact]) -> None:
    facts = [
        msgspec.structs.replace(f, rephrases=tuple(f"{f.subject}, {i}," for i in range(i % 5)))
        for i, f in enumerate(news)
    ]
    rows = fact_rows(make_bench().loaded.tokenizer, facts, 4)
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
