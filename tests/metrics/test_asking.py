"""Batched metrics against a plain second implementation, one question at a time and without a cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lifelong_edit.errors import BadInputError
from lifelong_edit.eval.metrics.verdicts import (
    ask_any,
    ask_pairs,
    ask_unchanged,
    base_answers,
    predict_answers,
    summarise,
)
from lifelong_edit.models import BASE, LoadedModel, encode, load_model
from lifelong_edit.tasks.causal.verdicts import MARGIN

PROMPTS = ["The capital of France is", "Ada", "In 1969 two people", "Kenya's currency is the", "The river Danube flows"]


@pytest.fixture(scope="module")
def loaded(tiny_gpt2: Path) -> LoadedModel:
    return load_model(str(tiny_gpt2))


def plain_greedy(loaded: LoadedModel, ids: list[int], count: int) -> list[int]:
    """Greedy tokens with a whole forward pass for each; a token that ends the text is the last."""
    new: list[int] = []
    while len(new) < count and loaded.tokenizer.eos_token_id not in new:
        new.append(int(loaded.model(input_ids=torch.tensor([ids + new])).logits[0, -1].argmax()))
    return new


def plain_teacher_forced(loaded: LoadedModel, prompt: list[int], answer: list[int]) -> bool:
    """Token by token: is the next answer token the most probable one?"""
    for position, token in enumerate(answer):
        logits = loaded.model(input_ids=torch.tensor([prompt + answer[:position]])).logits[0, -1]
        if int(logits.argmax()) != token:
            return False
    return True


def questions(loaded: LoadedModel, sentences: list[str]) -> list[tuple[str, str]]:
    """Some asked for the token that the model says next anyway, as many for something else."""
    pairs: list[tuple[str, str]] = []
    for prompt in (sentence[:end] for sentence in sentences for end in range(5, len(sentence))):
        own = plain_greedy(loaded, loaded.tokenizer(prompt)["input_ids"], 1)
        target = loaded.tokenizer.decode(own)
        # Random weights like to say fragments of words, which no question can ask for.
        if target.strip() and encode(loaded.tokenizer, prompt, target).ids[-1:] == tuple(own):
            pairs += [(prompt, target), (prompt, "Paris")]
    assert len(pairs) > 20
    return pairs[:40]


def test_teacher_forced_and_generated_equal_the_plain_implementation(loaded: LoadedModel, sentences: list[str]) -> None:
    pairs = questions(loaded, sentences)
    results = ask_pairs(loaded, pairs, batch_size=4)
    for (prompt, target), result in zip(pairs, results, strict=True):
        encoded = encode(loaded.tokenizer, prompt, target)
        front, answer = list(encoded.prompt), list(encoded.answer)
        assert result.teacher_forced == plain_teacher_forced(loaded, front, answer)
        new = plain_greedy(loaded, front, len(answer) + MARGIN)
        assert result.answer == loaded.tokenizer.decode(new, skip_special_tokens=True)
    assert {r.teacher_forced for r in results} == {True, False}


def test_a_question_is_right_if_one_of_its_answers_is(loaded: LoadedModel, sentences: list[str]) -> None:
    own, wrong = questions(loaded, sentences)[::2], questions(loaded, sentences)[1::2]
    aliases = {pair: ["London", right] for pair, (_, right) in zip(wrong, own, strict=True)}
    assert [r.teacher_forced for r in ask_pairs(loaded, wrong)] != [r.teacher_forced for r in ask_pairs(loaded, own)]
    found, alone = ask_any(loaded, wrong, aliases), ask_pairs(loaded, own)
    for pair, one, other in zip(wrong, found, alone, strict=True):
        several = [other, *ask_pairs(loaded, [pair, (pair[0], "London")])]
        assert one.teacher_forced == any(result.teacher_forced for result in several)
        assert one.generated == any(result.generated for result in several)
    assert ask_any(loaded, own, {}) == alone and ask_any(loaded, [], {}) == []


def test_predictions_do_not_depend_on_the_batch(loaded: LoadedModel, sentences: list[str]) -> None:
    encoded = [encode(loaded.tokenizer, prompt, target) for prompt, target in questions(loaded, sentences)]
    assert predict_answers(loaded, encoded, 64) == [predict_answers(loaded, [e])[0] for e in encoded]


def test_untouched_model_keeps_every_answer_and_an_edited_one_does_not(loaded: LoadedModel) -> None:
    probes: list[tuple[str, str | None]] = [
        (p, t) for p, t in zip(PROMPTS, ["Paris", None, "a b c", "x", None], strict=True)
    ]
    answers = base_answers(loaded, probes)
    for (prompt, target), answer in zip(probes, answers, strict=True):
        encoded = loaded.tokenizer(prompt)["input_ids"]
        length = 5 if target is None else len(loaded.tokenizer(f"{prompt} {target}")["input_ids"]) - len(encoded)
        assert list(answer) == plain_greedy(loaded, encoded, length)
    same = summarise(ask_unchanged(loaded, PROMPTS, answers))
    assert (same.teacher_forced, same.generated) == (1.0, 1.0)

    generator = torch.Generator().manual_seed(3)
    with loaded.at({m.name: torch.randn(m.d_in, m.d_out, generator=generator) * 0.15 for m in loaded.modules}):
        assert base_answers(loaded, probes) == answers
        results = ask_unchanged(loaded, PROMPTS, answers)
        for prompt, answer, result in zip(PROMPTS, answers, results, strict=True):
            front = loaded.tokenizer(prompt)["input_ids"]
            assert result.teacher_forced == plain_teacher_forced(loaded, front, list(answer))
            assert result.generated == (plain_greedy(loaded, front, len(answer)) == list(answer))
        assert not all(r.generated for r in results)
        assert [r.generated for r in results] == [r.teacher_forced for r in results]


def test_asking_for_the_base_answers_leaves_the_edited_weights_bit_for_bit(loaded: LoadedModel) -> None:
    module = loaded.modules[0]
    weight = loaded.model.get_submodule(module.name).weight
    with loaded.at({module.name: torch.full((module.d_in, module.d_out), 1e-3)}):
        before = weight.clone()
        assert base_answers(loaded, [(PROMPTS[0], None)])
        assert torch.equal(weight, before)
        with pytest.raises(RuntimeError, match="on the way"), loaded.at(BASE):
            assert torch.equal(weight, loaded.base_weight(module.name))
            raise RuntimeError("on the way")
        assert torch.equal(weight, before)
    assert torch.equal(weight, loaded.base_weight(module.name))


def test_no_questions_no_results(loaded: LoadedModel) -> None:
    assert ask_pairs(loaded, []) == []
    assert base_answers(loaded, []) == []
    assert ask_unchanged(loaded, [], []) == []


def test_question_beyond_the_context_is_refused(loaded: LoadedModel) -> None:
    with pytest.raises(BadInputError, match="at most 64"):
        ask_pairs(loaded, [("zq " * 80, "Paris")])


def test_model_that_knows_facts_scores_as_its_readme_says(shared: Path) -> None:
    """trex-gpt2-mini answers every true fact of its stream file, and hardly any of the counterfactual targets."""
    folder = shared / "models" / "trex-gpt2-mini"
    lines = (folder / "facts_stream.jsonl").read_text(encoding="utf-8").splitlines()[:120]
    facts = [json.loads(line) for line in lines]
    loaded = load_model(str(folder))
    true = summarise(ask_pairs(loaded, [(f["prompt"], f["target_true"]) for f in facts]))
    assert (true.teacher_forced, true.generated) == (1.0, 1.0)
    assert true.natural > 0.9
    false = summarise(ask_pairs(loaded, [(f["prompt"], f["target"]) for f in facts]))
    assert false.teacher_forced < 0.05 and false.generated < 0.05
