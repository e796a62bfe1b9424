"""The gate: what it reports, what it refuses, and that it sees the weights that would be committed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lifelong_edit.editors.ridge.batch import Bench, Proposal, SolveState
from lifelong_edit.errors import StepRefusedError
from lifelong_edit.facts import Fact
from lifelong_edit.judging.gate import answers_taken, base_perplexity, check
from lifelong_edit.tasks.causal.perplexity import perplexity_of
from lifelong_edit.timeline import Timeline

STATE, PROPOSAL = SolveState({}, {}, {}), Proposal({}, {}, {}, {})


@pytest.fixture
def bench(new_store: Callable[[str], Path]) -> Iterator[Bench]:
    """A bench of its own, whose model and settings a test may change."""
    with Timeline.open(new_store("gate"), read_only=True) as timeline:
        yield timeline.bench()


def known_and_unknown(bench: Bench) -> list[Fact]:
    """A fact that the model answers by itself, and one that it does not."""
    from lifelong_edit.models import generate_greedy

    prompt = "The capital of France is"
    tokens = generate_greedy(bench.loaded, [prompt], 6)[0]
    answer = bench.loaded.tokenizer.decode(tokens).strip()
    known = Fact(subject="France", prompt=prompt, target=answer)
    return [known, Fact(subject="France", prompt=prompt, target="xyzzy")]


def spoil(bench: Bench, factor: float) -> None:
    """Shift the lowest edited weights to a multiple of the base's, as a step gone wrong would."""
    module = bench.loaded.modules[0].name
    bench.loaded.set_shifts({module: bench.loaded.base_weight(module) * (factor - 1)})


def test_figures(bench: Bench) -> None:
    facts = known_and_unknown(bench)
    taken = answers_taken(bench.loaded, facts)
    found = check(bench, STATE, PROPOSAL, facts)
    assert taken[1] is False
    assert found["asked"] == 2
    assert found["taken"] == sum(taken)
    assert found["untaken"] == [f.digest for f, took in zip(facts, taken, strict=True) if not took]
    assert found["perplexity"] == found["base_perplexity"] > 1


def test_refuses_what_is_not_finite(bench: Bench) -> None:
    for factor in (math.nan, math.inf):
        spoil(bench, factor)
        with pytest.raises(StepRefusedError, match="not be finite"):
            check(bench, STATE, PROPOSAL, [])


def test_refuses_a_model_that_breaks(bench: Bench) -> None:
    """Perplexity is held against the untouched base model, whatever the weights are when it is first measured."""
    untouched = perplexity_of(bench.loaded, bench.guard_windows)
    spoil(bench, 50.0)
    assert base_perplexity(bench) == untouched
    rise = perplexity_of(bench.loaded, bench.guard_windows) / untouched
    assert abs(rise - 1) > 0.05
    bench.settings = bench.settings.replace(gate_perplexity=rise * 0.99)
    with pytest.raises(StepRefusedError, match="perplexity"):
        check(bench, STATE, PROPOSAL, [])
    bench.settings = bench.settings.replace(gate_perplexity=rise * 1.01)
    assert check(bench, STATE, PROPOSAL, [])["base_perplexity"] == untouched


def test_refuses_too_small_a_share(bench: Bench) -> None:
    bench.settings = bench.settings.replace(gate_min_taken=0.9)
    with pytest.raises(StepRefusedError, match="0 of its 1 facts have taken"):
        check(bench, STATE, PROPOSAL, known_and_unknown(bench)[1:])
    assert check(bench, STATE, PROPOSAL, [])["asked"] == 0
