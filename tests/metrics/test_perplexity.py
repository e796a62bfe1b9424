"""Perplexity against a plain implementation and against what the small model's README states."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from lifelong_edit.errors import BadInputError
from lifelong_edit.models import LoadedModel, load_model
from lifelong_edit.tasks.causal.perplexity import perplexity, perplexity_of, text_windows


@pytest.fixture(scope="module")
def loaded(tiny_gpt2: Path) -> LoadedModel:
    return load_model(str(tiny_gpt2))


def test_equals_the_chain_rule_token_by_token(loaded: LoadedModel, sentences: list[str]) -> None:
    text = "\n" + " ".join(sentences)
    ids = loaded.tokenizer(text.strip())["input_ids"]
    losses = []
    for window in (ids[:16], ids[16:32], ids[32:48]):
        for position in range(1, 16):
            logits = loaded.model(input_ids=torch.tensor([window[:position]])).logits[0, -1].double()
            losses.append(-float(logits.log_softmax(-1)[window[position]]))
    assert perplexity(loaded, text, windows=3, width=16) == pytest.approx(math.exp(sum(losses) / 45), rel=1e-5)


def test_uniform_model_has_the_perplexity_of_its_vocabulary(tiny_gpt2: Path, sentences: list[str]) -> None:
    loaded = load_model(str(tiny_gpt2))
    loaded.model.transformer.wte.weight.zero_()
    assert perplexity(loaded, " ".join(sentences)) == pytest.approx(len(loaded.tokenizer), rel=1e-5)


def test_windows_of_the_context_and_no_remainder(loaded: LoadedModel, sentences: list[str]) -> None:
    text = " ".join(sentences)
    total = len(loaded.tokenizer(text)["input_ids"])
    assert text_windows(loaded, text).shape == (total // 64, 64)
    assert text_windows(loaded, text, windows=1, width=10).shape == (1, 10)
    assert text_windows(loaded, "The capital").shape[0] == 1


def test_beginning_of_a_large_text_is_read_without_the_rest(loaded: LoadedModel, sentences: list[str]) -> None:
    text = " ".join(sentences * 60)
    whole = loaded.tokenizer(text)["input_ids"]
    assert text_windows(loaded, text, windows=2, width=32).flatten().tolist() == whole[:64]


def test_too_short_a_text_is_refused(loaded: LoadedModel) -> None:
    with pytest.raises(BadInputError, match="too short"):
        perplexity(loaded, " ")


def test_collapsed_model_has_no_finite_perplexity(tiny_gpt2: Path, sentences: list[str]) -> None:
    loaded = load_model(str(tiny_gpt2))
    module = loaded.modules[-1]
    with loaded.at({module.name: torch.full((module.d_in, module.d_out), math.inf)}):
        assert not math.isfinite(perplexity_of(loaded, text_windows(loaded, " ".join(sentences))))


def test_small_model_has_the_perplexity_that_its_readme_states(shared: Path) -> None:
    loaded = load_model(str(shared / "models" / "trex-gpt2-mini"))
    text = (shared / "data" / "wikitext2" / "test.txt").read_text(encoding="utf-8")
    assert perplexity(loaded, text) == pytest.approx(104, abs=0.5)
