"""Probabilities, divergences, entropies, norms: cases worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from lifelong_edit.eval.metrics.answers import kl_divergences, token_log_probabilities
from lifelong_edit.eval.metrics.fluency import continuations, generation_entropy, ngram_entropy, sampler
from lifelong_edit.eval.metrics.matrices import matrix_changes, matrix_figures
from lifelong_edit.eval.metrics.probabilities import Compared, Comparison, compare, outcome, success_and_magnitude
from lifelong_edit.models import LoadedModel, generate_greedy, load_model

HALF, QUARTER = math.log(0.5), math.log(0.25)


@pytest.fixture(scope="module")
def loaded(tiny_gpt2: Path) -> LoadedModel:
    return load_model(str(tiny_gpt2))


def test_log_probability_of_tokens() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [math.log(2), 0.0, 0.0, -math.inf]], dtype=torch.float64)
    found = token_log_probabilities(logits, torch.tensor([1, 0]))
    assert found.tolist() == pytest.approx([QUARTER, HALF])


def test_divergence_from_the_base_model() -> None:
    """Base (1/2, 1/2), edited (1/4, 3/4): ½ log 2 + ½ log ⅔; what the base excludes adds nothing."""
    even = torch.tensor([[0.0, 0.0, -math.inf]], dtype=torch.float64)
    uneven = torch.tensor([[0.0, math.log(3), -math.inf]], dtype=torch.float64)
    assert kl_divergences(even, uneven).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert kl_divergences(uneven, even).item() == pytest.approx(QUARTER / 4 + 0.75 * math.log(0.75) - HALF)
    assert kl_divergences(even + 5, even).item() == pytest.approx(0, abs=1e-15)
    assert math.isinf(kl_divergences(torch.zeros(1, 3), even.float()).item())


def test_comparison_of_two_answers() -> None:
    assert outcome(HALF, QUARTER) == Compared(True, pytest.approx(0.25))
    assert outcome(QUARTER, HALF) == Compared(False, pytest.approx(-0.25))
    assert not outcome(HALF, HALF).success, "as probable is not more probable"


def test_an_answers_probability_is_the_geometric_mean_of_its_tokens(loaded: LoadedModel) -> None:
    """A uniform model finds long and short answers equally probable, though the product of the long one is smaller."""
    uniform = load_model(loaded.source)
    uniform.model.transformer.wte.weight.zero_()
    asked = Comparison("The capital of France is", "Warsaw, Vienna and Bratislava", "Paris")
    found = compare(uniform, [asked, asked])
    assert list(found) == [asked]
    assert found[asked].magnitude == pytest.approx(0, abs=1e-9)


def test_means_over_the_prompts_of_a_fact_first() -> None:
    """One fact with one paraphrase, one with three: each counts as much (ROME's `summarize.py`)."""
    asked = [Comparison(f"prompt {i}", "new", "true") for i in range(4)]
    results = dict(zip(asked, [Compared(True, 0.5), *[Compared(False, -0.1)] * 3], strict=True))
    found = success_and_magnitude([{"E": asked[:1], "P": asked[:1]}, {"E": asked[1:2], "P": asked[1:]}], results)
    assert (found["PS"].value, found["PM"].value) == (0.5, pytest.approx(0.2))
    assert (found["ES"].value, found["ES"].facts) == (0.5, 2)
    assert found["NS"].facts == 0 and math.isnan(found["NS"].value)


def test_entropy_of_runs_of_words() -> None:
    words = ["a", "b", "a", "b", "a"]
    assert ngram_entropy(words, 2) == 1.0  # ab, ba, ab, ba
    assert ngram_entropy(words, 3) == pytest.approx(-(2 / 3) * math.log2(2 / 3) - (1 / 3) * math.log2(1 / 3))
    assert ngram_entropy(["a", "b", "c", "d", "e"], 2) == 2.0
    assert ngram_entropy(["a", "b"], 2) == 0.0
    assert ngram_entropy(["a"], 2) == 0.0


def test_generation_entropy_weighs_triples_twice() -> None:
    """Five different words: 4 pairs (2 bits), 3 triples; signs are words of their own."""
    assert generation_entropy("one two three four five") == pytest.approx(2 / 3 + 2 * math.log2(3) / 3)
    assert generation_entropy("one, two. three") == generation_entropy("one two three four five")
    assert generation_entropy("") == 0.0
    assert generation_entropy("ja ja ja ja ja ja") == 0.0


def test_sampling_is_seeded_and_stays_within_the_most_probable(loaded: LoadedModel) -> None:
    prompts = ["The capital of France is", "Ada", "Kenya's currency is the"]
    first = continuations(loaded, prompts, seed=1, length=20)
    assert first == continuations(loaded, prompts, seed=1, length=20)
    assert first != continuations(loaded, prompts, seed=2, length=20)
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).repeat(4000, 1)
    drawn = sampler(seed=0, top=2)(logits)
    assert set(drawn.tolist()) == {1, 2}
    # Of the two the better has e/(1 + e); four deviations of 4,000 draws are 0.03.
    assert float((drawn == 2).float().mean()) == pytest.approx(math.e / (1 + math.e), abs=0.03)
    assert sampler(seed=0)(torch.full((2, 4), math.nan)).shape == (2,)
    greedy = [loaded.tokenizer.decode(ids) for ids in generate_greedy(loaded, prompts, 20)]
    assert greedy != first


def test_norms_and_condition_of_a_diagonal_matrix() -> None:
    found = matrix_figures(torch.diag(torch.tensor([3.0, 4.0]))[:, [1, 0]])
    assert (found.frobenius, found.spectral, found.condition) == pytest.approx((5.0, 4.0, 4 / 3))
    assert matrix_figures(torch.ones(3, 2)).condition > 1e12
    assert math.isinf(matrix_figures(torch.zeros(2, 2)).condition)
    assert math.isnan(matrix_figures(torch.full((2, 2), math.nan)).spectral)


def test_changes_are_told_from_the_base(loaded: LoadedModel) -> None:
    module = loaded.modules[-1]
    with loaded.at({module.name: loaded.base_weight(module.name).clone()}):
        *others, last = matrix_changes(loaded)
    assert all(change.shift == 0 and change.now == change.base for change in others)
    assert last.shift == pytest.approx(1, rel=1e-6)
    assert last.now.frobenius == pytest.approx(2 * last.base.frobenius, rel=1e-6)
    assert last.now.condition == pytest.approx(last.base.condition, rel=1e-5)
