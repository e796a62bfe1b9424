"""Greedy generation in batches: bounds, ends of text, and the same tokens whatever the batch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lifelong_edit.errors import BadInputError
from lifelong_edit.models import LoadedModel, end_ids, generate, generate_from_ids, generate_greedy, load_model

PROMPTS = ["The capital of France is", "Ada", "In 1969 two people walked on the Moon, and", "Kenya", "The river"]


@pytest.fixture
def loaded(tiny_gpt2: Path) -> LoadedModel:
    return load_model(str(tiny_gpt2))


def test_bounds_hold_for_each_prompt(loaded: LoadedModel) -> None:
    assert [len(ids) for ids in generate_greedy(loaded, PROMPTS, [0, 1, 2, 3, 4])] == [0, 1, 2, 3, 4]
    longest = generate_greedy(loaded, PROMPTS, 9)
    assert generate_greedy(loaded, PROMPTS, [0, 1, 2, 3, 4]) == [ids[:n] for n, ids in enumerate(longest)]
    assert generate_greedy(loaded, [], 3) == []
    with pytest.raises(ValueError, match="5 prompts but 2"):
        generate_greedy(loaded, PROMPTS, [1, 2])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
def test_same_tokens_for_every_batch_size(loaded: LoadedModel, batch_size: int) -> None:
    assert generate_greedy(loaded, PROMPTS, 12, batch_size) == generate_greedy(loaded, PROMPTS, 12, 5)


def test_cut_at_the_end_of_text_which_is_told(loaded: LoadedModel) -> None:
    plain = generate(loaded, PROMPTS, 8)
    assert not any(g.stopped for g in plain)
    end = plain[0].ids[4]
    loaded.model.generation_config.eos_token_id = [end, 1]
    assert end_ids(loaded) == {0, 1, end}
    cut = generate(loaded, PROMPTS, 8)
    first = plain[0].ids.index(end)
    assert cut[0].ids == plain[0].ids[:first]
    assert cut[0].stopped and cut[0].end == end and cut[0].with_end == plain[0].ids[: first + 1]
    for before, after in zip(plain, cut, strict=True):
        assert after.ids == before.ids[: len(after.ids)]
        assert after.stopped == (end in before.ids)


def test_stops_at_the_end_of_the_context(loaded: LoadedModel) -> None:
    ids = [7] * 60
    generation = generate_from_ids(loaded, [ids, [5]], 10)
    assert [len(g.ids) for g in generation] == [4, 10]
    with pytest.raises(BadInputError, match="64 tokens and leaves no room in a context of 64"):
        generate_from_ids(loaded, [[7] * 64], 1)


def test_leaves_no_hook_behind_even_after_a_failure(loaded: LoadedModel) -> None:
    head = loaded.model.get_output_embeddings()
    generate(loaded, PROMPTS, 2)
    with pytest.raises(IndexError):
        generate_from_ids(loaded, [[10**6]], 2)
    assert not head._forward_pre_hooks
    assert loaded.model(input_ids=torch.tensor([[1, 2, 3]])).logits.shape[1] == 3


def test_model_that_knows_facts_says_the_same_in_batches_and_alone(shared: Path) -> None:
    folder = shared / "models" / "trex-gpt2-mini"
    lines = (folder / "facts_train.jsonl").read_text(encoding="utf-8").splitlines()[:80]
    facts = [json.loads(line) for line in lines]
    loaded = load_model(str(folder))
    prompts = [prompt for f in facts for prompt in (f["prompt"], *f["rephrases"][:1])]
    assert generate_greedy(loaded, prompts, 7) == generate_greedy(loaded, prompts, 7, batch_size=1)
    for fact, answer in zip(facts, generate_greedy(loaded, [f["prompt"] for f in facts], 7), strict=True):
        assert loaded.tokenizer.decode(answer).strip().startswith(fact["target_true"])
