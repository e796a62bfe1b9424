"""The training of atlas in the small: packing, what is asked, orthogonal updates, and the same weights twice."""

from __future__ import annotations

import dataclasses
import itertools
import random

import pytest
import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from lifelong_edit.atlas.learning import (
    Recipe,
    Statement,
    encode_statement,
    loss_of,
    new_model,
    pack,
    prose_batches,
    slope,
    statement_batches,
    train,
)
from lifelong_edit.atlas.muon import orthogonal
from lifelong_edit.atlas.tokenizing import train_tokenizer

TINY = Recipe(layers=2, width=16, heads=2, context=24, steps=6, rows=4, row_length=24, windows=2, warm_up=2)
TEXTS = [f"The capital of {s} is {t}." for s, t in (("France", "Paris"), ("Peru", "Lima"), ("Norway", "Oslo"))]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS * 4, TINY.context)


def statements(tokenizer: PreTrainedTokenizerFast) -> list[Statement]:
    pairs = (("The capital of France is", "Paris"), ("The capital of Peru is", "Lima"))
    return [encode_statement(tokenizer, prompt, target) for prompt, target in pairs] * 8


def learned(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> GPT2LMHeadModel:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = new_model(recipe, len(tokenizer), tokenizer.eos_token_id)
    prose = [token for text in TEXTS * 20 for token in tokenizer.encode(text)]
    train(model, statements(tokenizer), prose, recipe, half=False, watch=lambda step, line: None)
    torch.set_num_threads(threads)
    return model


def test_a_statement_is_prompt_answer_full_stop_and_end(tokenizer: PreTrainedTokenizerFast) -> None:
    s = encode_statement(tokenizer, "The capital of France is", "Paris")
    assert tokenizer.decode(list(s.ids)) == "The capital of France is Paris.<|endoftext|>"
    assert tokenizer.decode(list(s.ids[s.answer : s.stop])) == " Paris"


def test_rows_hold_every_statement_once_and_fit() -> None:
    rng = random.Random(0)
    some = [Statement(tuple(range(rng.randint(5, 20))), 3, 4) for _ in range(300)]
    rows = pack(some, list(range(300)), 32)
    assert sorted(number for row in rows for number in row) == list(range(300))
    sizes = [sum(len(some[number].ids) for number in row) for row in rows]
    assert max(sizes) <= 32
    assert sum(sizes) > 0.85 * 32 * len(rows)


def test_a_statement_that_fits_no_row_is_refused() -> None:
    with pytest.raises(ValueError, match="33 tokens, but a row takes 32"):
        pack([Statement(tuple(range(33)), 3, 4)], [0], 32)


def test_only_answers_and_what_ends_them_are_asked_for(tokenizer: PreTrainedTokenizerFast) -> None:
    ids, due = next(statement_batches(statements(tokenizer), TINY))
    assert ids.shape == due.shape == (TINY.rows, TINY.row_length)
    asked = tokenizer.decode(ids[due].tolist())
    assert set(asked.replace("<|endoftext|>", " ").split()) == {"Paris.", "Lima."}


def test_loss_is_that_of_the_tokens_due(tokenizer: PreTrainedTokenizerFast) -> None:
    model = new_model(TINY, len(tokenizer), tokenizer.eos_token_id)
    ids = torch.randint(0, len(tokenizer), (2, 10))
    due = torch.zeros(2, 10, dtype=torch.bool)
    due[0, 4] = due[1, 9] = True
    logits = model(ids, attention_mask=torch.ones_like(ids)).logits.log_softmax(-1)
    wanted = -(logits[0, 3, ids[0, 4]] + logits[1, 8, ids[1, 9]]) / 2
    torch.testing.assert_close(loss_of(model, ids, due), wanted)


def test_every_round_of_prose_shows_all_of_it_but_the_edges() -> None:
    recipe = dataclasses.replace(TINY, windows=1, context=16)
    batches = list(itertools.islice(prose_batches(list(range(160)), recipe), 9))
    seen = torch.cat(batches).flatten().tolist()
    assert len(set(seen)) == len(seen) == 9 * 16


def test_rates_rise_stay_and_fall_to_zero() -> None:
    rates = [slope(step, 100, 10) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[15] == 1.0
    assert rates[99] == pytest.approx(1 / 75)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[30:]))


@pytest.mark.parametrize("shape", [(16, 40), (40, 16)])
def test_orthogonal_updates_keep_directions_and_level_sizes(shape: tuple[int, int]) -> None:
    update = torch.randn(shape, generator=torch.Generator().manual_seed(0)) @ torch.diag(
        torch.logspace(-1, 1, shape[1])
    )
    level = orthogonal(update, half=False)
    before, after = torch.linalg.svdvals(update), torch.linalg.svdvals(level)
    assert before.max() / before.min() > 5
    assert 0.5 < after.min() <= after.max() < 1.3
    assert (update * level).sum() > 0.6 * torch.linalg.svdvals(update).sum()


def test_training_is_the_same_twice_and_another_for_another_seed(tokenizer: PreTrainedTokenizerFast) -> None:
    first, again = learned(tokenizer, TINY), learned(tokenizer, TINY)
    other = learned(tokenizer, dataclasses.replace(TINY, seed=1))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_training_learns(tokenizer: PreTrainedTokenizerFast) -> None:
    recipe = dataclasses.replace(TINY, steps=60)
    ids, due = next(statement_batches(statements(tokenizer), recipe))
    before = loss_of(new_model(recipe, len(tokenizer), tokenizer.eos_token_id), ids, due)
    assert loss_of(learned(tokenizer, recipe), ids, due) < 0.5 * before
