"""What a reconsolidation must not lose, and the prompts that judge it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from lifelong_edit.editors.ridge import batch as batchstep
from lifelong_edit.editors.ridge import passes
from lifelong_edit.editors.ridge import together as reconsolidation
from lifelong_edit.facts import Fact, Probe
from lifelong_edit.judging.guard import Figures, as_report, measure, objections
from lifelong_edit.timeline import Timeline
from lifelong_edit.tracing.rows import Row
from lifelong_edit.tracing.trace import trace

SHARES: dict[str, float] = {"retention": 0.9, "asked": 100, "locality": 0.8, "guards": 10_000, "perplexity": 50.0}
NAN = float("nan")


def figures(**changes: float) -> Figures:
    return Figures(**SHARES | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, None),
        ({"retention": 1.0, "locality": 1.0, "perplexity": 10.0}, None),
        ({"retention": 0.871}, None),  # one standard error is 0.03
        ({"retention": 0.869}, "retention falls from 0.900 to 0.869"),
        ({"locality": 0.791}, None),  # a point, where the standard error is less
        ({"locality": 0.789}, "locality on guard prompts falls from 0.800 to 0.789"),
        ({"perplexity": 50.49}, None),
        ({"perplexity": 50.51}, "perplexity rises from 50.0 to 50.5"),
        ({"perplexity": float("inf")}, "perplexity rises"),
        ({"perplexity": NAN}, "perplexity rises"),
    ],
)
def test_objections(changes: dict[str, float], word: str | None) -> None:
    found = objections(figures(), figures(**changes))
    assert len(found) == (word is not None)
    assert word is None or word in found[0]


def test_objections_at_the_edges() -> None:
    assert len(objections(figures(), figures(retention=0, locality=0, perplexity=99))) == 3
    # A perfect state has no spread to estimate an error from; one answer of a hundred may still change.
    assert not objections(figures(retention=1.0), figures(retention=0.99))
    assert objections(figures(retention=1.0), figures(retention=0.98))
    # Of a hundred guard prompts the standard error is four points: less is what their draw decides.
    few = figures(guards=100)
    assert not objections(few, figures(guards=100, locality=0.761))
    assert objections(few, figures(guards=100, locality=0.759))
    # Without guard prompts there is no locality to speak of.
    assert not objections(figures(locality=NAN, guards=0), figures(locality=NAN, guards=0))
    report = as_report(figures(locality=NAN), figures(perplexity=float("inf")))
    assert report["before"]["locality"] is None
    assert report["after"]["perplexity"] is None
    json.dumps(report, allow_nan=False)


@pytest.fixture
def guarded(start_store: Callable[..., Timeline], tmp_path: Path, batch: Callable[..., list[Fact]]) -> Timeline:
    """A store with thirty preserved prompts, some about what a fact of the first batch is about; not closed."""
    about = batch(0)[0].subject
    names = ["Paris", "London", "Vienna", "Warsaw", "Kenya", "Japan"]
    prompts = [f"The river of {names[i % 6]} {i} is" for i in range(30)]
    probes = [Probe(prompt=p, subject=about if i % 3 == 0 else f"none {i}") for i, p in enumerate(prompts)]
    made: Timeline = start_store(tmp_path / "guarded", preserve=probes, preserved=100, reconsolidation_preserved=100)
    return made


def test_guard_prompts_are_never_rows_nor_held_by_their_keys(
    guarded: Timeline, batch: Callable[..., list[Fact]], lenient: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    traced: list[Row] = []

    def spy(loaded: Any, rows: Any, *rest: Any, **more: Any) -> Any:
        traced.extend(rows)
        return trace(loaded, rows, *rest, **more)

    monkeypatch.setattr(reconsolidation, "trace", spy)
    monkeypatch.setattr(batchstep, "trace", spy)
    monkeypatch.setattr(passes, "trace", spy)
    with guarded as timeline:
        preserved = timeline.bench().preserved
        guard = sorted(preserved.guard)
        assert len(guard) == 2  # a tenth of the 21 subjects; one of them would bring its ten prompts along
        timeline.apply(batch(0), gate=lenient)
        timeline.reconsolidate(guard=False)
        asked = {row.encoded.ids for row in traced if row.kind == "preserved"}
        rows = {i: preserved.row(i, 1.0).encoded.ids for i in range(30)}
        subjects = frozenset(fact.subject.casefold() for fact in batch(0))
        assert asked == {rows[i] for i in preserved.free(subjects)}
        assert not asked & {rows[i] for i in guard}
        assert not preserved.keys_outside(frozenset()).keys() & set(map(str, guard))
        assert set(preserved.guards(subjects)) == {i for i in guard if i % 3}


def test_measure(guarded: Timeline, batch: Callable[..., list[Fact]], lenient: Callable[..., Any]) -> None:
    """A function of model, facts and identity; each fact's own prompt, and one phrasing that is no row."""
    with guarded as timeline:
        bench, phrasings = timeline.bench(), timeline.editor().phrasings
        base = measure(bench, phrasings, batch(0), "x")
        assert (base.locality, base.asked, base.retention) == (1.0, 3, 0.0)
        timeline.apply(batch(0), gate=lenient)
        with timeline.at("head").standing():
            edited = measure(bench, phrasings, batch(0), "x")
            assert measure(bench, phrasings, batch(0)[::-1], "x") == edited
        assert edited.perplexity != base.perplexity
        extra = [msgspec.structs.replace(f, rephrases=(*f.rephrases, f"{f.subject} is ruled from")) for f in batch(0)]
        assert measure(bench, phrasings, extra, "x").asked == 6
        assert torch.isfinite(torch.tensor([edited.perplexity, edited.locality])).all()


def test_a_prompt_given_twice_is_preserved_once(start_store: Callable[..., Timeline], tmp_path: Path) -> None:
    probes = [Probe(prompt=f"The river of Kenya {i} is", subject=f"none {i}") for i in range(4)]
    with start_store(tmp_path / "twice", preserve=[*probes, *probes[:3]]) as timeline:
        assert timeline.bench().preserved.probes == probes
        assert timeline.status()["preserved"] == 4
