"""The gate: what it reports, what it refuses, and that it sees the weights that would be committed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from lifelong_edit.bench import Bench, State
from lifelong_edit.editors.contract import Change
from lifelong_edit.errors import StepRefusedError
from lifelong_edit.facts import Fact
from lifelong_edit.judging.gate import allowed_perplexity, answers_taken, base_perplexity, check
from lifelong_edit.models import LoadedModel
from lifelong_edit.timeline import Timeline

STATE, CHANGE = State(), Change({}, {})


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


def spoilt(bench: Bench, factor: float) -> AbstractContextManager[LoadedModel]:
    """The model with the lowest edited weights shifted to a multiple of the base's, as a step gone wrong would."""
    module = bench.loaded.modules[0].name
    return bench.loaded.at({module: bench.loaded.base_weight(module) * (factor - 1)})


def health(bench: Bench) -> float:
    """The model's perplexity on the store's sample, as it stands."""
    return bench.task.health(bench.loaded, bench.guard_windows)


def test_figures(bench: Bench) -> None:
    facts = known_and_unknown(bench)
    taken = answers_taken(bench.loaded, facts)
    found = check(bench, STATE, CHANGE, facts)
    assert taken[1] is False
    assert found["asked"] == 2
    assert found["taken"] == sum(taken)
    assert found["untaken"] == [f.digest for f, took in zip(facts, taken, strict=True) if not took]
    assert found["perplexity"] == found["base_perplexity"] > 1


def test_refuses_what_is_not_finite(bench: Bench) -> None:
    for factor in (math.nan, math.inf):
        with spoilt(bench, factor), pytest.raises(StepRefusedError, match="not be finite"):
            check(bench, STATE, CHANGE, [])


def test_refuses_a_model_that_breaks(bench: Bench) -> None:
    """Perplexity is held against the untouched base model, whatever the weights are when it is first measured."""
    untouched = health(bench)
    with spoilt(bench, 50.0):
        assert base_perplexity(bench) == untouched
        rise = health(bench) / untouched
        assert abs(rise - 1) > 0.05
        bench.settings = bench.settings.replace(gate_perplexity=rise * 0.99)
        with pytest.raises(StepRefusedError, match="perplexity"):
            check(bench, STATE, CHANGE, [])
        bench.settings = bench.settings.replace(gate_perplexity=rise * 1.01)
        assert check(bench, STATE, CHANGE, [])["base_perplexity"] == untouched


def test_refuses_a_rise_beyond_the_noise_of_text(bench: Bench) -> None:
    """What another sample of the text might show is allowed, and no more; the noise is that of the windows' losses."""
    half = bench.guard_windows.shape[1] // 2
    bench.guard_windows = torch.cat([bench.guard_windows[:, :half], bench.guard_windows[:, -half:]])
    losses = [math.log(bench.task.health(bench.loaded, window[None])) for window in bench.guard_windows]
    error = statistics.stdev(losses) / math.sqrt(len(losses))
    assert allowed_perplexity(bench) == bench.settings.gate_perplexity
    bench.settings = bench.settings.replace(gate_noise=2.0)
    assert allowed_perplexity(bench) == pytest.approx(math.exp(2 * error))
    untouched = health(bench)

    def rise_at(factor: float) -> float:
        with spoilt(bench, factor):
            return math.log(health(bench) / untouched)

    factor = max((-1.0, 0.0, 0.8, 0.9, 0.95, 1.05, 1.1, 2.0), key=rise_at)  # most make so small a model better
    rise = rise_at(factor)
    assert rise > 0
    with spoilt(bench, factor):
        bench.settings = bench.settings.replace(gate_noise=0.9 * rise / error)
        with pytest.raises(StepRefusedError, match="perplexity"):
            check(bench, STATE, CHANGE, [])
        bench.settings = bench.settings.replace(gate_noise=1.1 * rise / error)
        check(bench, STATE, CHANGE, [])


def test_refuses_too_small_a_share(bench: Bench) -> None:
    bench.settings = bench.settings.replace(gate_min_taken=0.9)
    with pytest.raises(StepRefusedError, match="0 of its 1 facts have taken"):
        check(bench, STATE, CHANGE, known_and_unknown(bench)[1:])
    assert check(bench, STATE, CHANGE, [])["asked"] == 0
