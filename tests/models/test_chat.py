"""Turns of a conversation as tokens, and what a model says to them: by hand, on a real template."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from lifelong_edit.errors import BadInputError, UsageError
from lifelong_edit.models import (
    Generation,
    LoadedModel,
    Turn,
    encode_reply,
    encode_turn,
    end_of_turn,
    generate_from_ids,
    has_template,
    load_model,
    turn_span,
)
from lifelong_edit.tasks import task_of

ASKED = Turn("What is the capital of France?")
TEXT = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
    "<|im_start|>assistant\n<think></think>"
)


@pytest.fixture(scope="module")
def model(chat_gpt2: Path) -> LoadedModel:
    return load_model(chat_gpt2, modules=["1-2"])


def ids_of(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def with_bos(tokenizer: Any) -> Any:
    """The same, with a BOS in front of every text, and in its template: as Llama's are."""
    from tokenizers import processors

    found = copy.deepcopy(tokenizer)
    end = found.eos_token
    found._tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{end} $A", special_tokens=[(end, found.eos_token_id)]
    )
    found.chat_template = "{{ bos_token }}" + found.chat_template
    assert found("a")["input_ids"][0] == found.eos_token_id
    return found


def test_a_turn_is_what_the_template_makes_of_it_and_thinks_nothing(chat_tokenizer: Any) -> None:
    assert encode_turn(chat_tokenizer, ASKED) == ids_of(chat_tokenizer, TEXT)


def test_system_prompt_and_earlier_turns_are_put_in_their_order(chat_tokenizer: Any) -> None:
    turn = Turn("And now?", "Be kind.", (("user", "Hello"), ("assistant", "Hi")))
    assert chat_tokenizer.decode(encode_turn(chat_tokenizer, turn)) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\nHi<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>\n"
        "<|im_start|>assistant\n<think></think>"
    )


def test_there_is_one_bos_where_tokenizer_and_template_both_bring_one(chat_tokenizer: Any) -> None:
    tokenizer = with_bos(chat_tokenizer)
    found = encode_reply(tokenizer, ASKED, "Paris", "France")
    assert found.ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(found.ids[slice(*found.subject)]).strip() == "France"


def test_an_answer_ends_with_the_end_of_a_turn_and_follows_without_a_blank(chat_tokenizer: Any) -> None:
    found = encode_reply(chat_tokenizer, ASKED, "Paris", "France")
    assert list(found.prompt) == encode_turn(chat_tokenizer, ASKED)
    assert chat_tokenizer.decode(found.answer) == "Paris<|im_end|>"
    assert end_of_turn(chat_tokenizer) == (chat_tokenizer.convert_tokens_to_ids("<|im_end|>"),)
    assert end_of_turn(chat_tokenizer) != (chat_tokenizer.eos_token_id,)


def test_a_template_that_puts_a_blank_before_answers_has_it_in_the_answer(chat_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(chat_tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
        "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    )
    found = encode_reply(tokenizer, ASKED, "Paris")
    assert tokenizer.decode(found.ids) == "[INST] What is the capital of France? [/INST] Paris<|endoftext|>"
    assert tokenizer.decode(found.answer) == " Paris<|endoftext|>"


def test_a_template_without_any_mark_ends_with_the_end_of_text(chat_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(chat_tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    assert end_of_turn(tokenizer) == (tokenizer.eos_token_id,)


@pytest.mark.parametrize("text", ["  What is the capital of France?\n", "France: France's capital?"])
def test_the_subject_is_found_at_its_last_mention_in_the_turn(chat_tokenizer: Any, text: str) -> None:
    turn = Turn(text, "You speak of France.")
    first, last = turn_span(chat_tokenizer, turn, "France")
    ids = encode_turn(chat_tokenizer, turn)
    assert "France" in chat_tokenizer.decode(ids[first:last])
    assert "France" not in chat_tokenizer.decode(ids[last:])
    assert turn_span(chat_tokenizer, turn, "Spain") == (0, 0)


@pytest.mark.parametrize(
    ("turn", "answer", "words"),
    [
        (Turn("  "), "Paris", "a turn without text"),
        (ASKED, " ", "target of prompt"),
        (Turn("far " * 300), "Paris", "at most 256"),
    ],
)
def test_what_a_model_cannot_take_is_refused(model: LoadedModel, turn: Turn, answer: str, words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        encode_reply(model.tokenizer, turn, answer)


def test_what_a_template_refuses_is_said_in_one_sentence(chat_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(chat_tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported.') }}"
        "{% endif %}{{ m['content'] }}{% endfor %}"
    )
    encode_turn(tokenizer, ASKED)
    with pytest.raises(BadInputError, match=r"refuses a conversation \(System role not supported\), expected"):
        encode_turn(tokenizer, Turn("Hello", "Be kind."))


def test_a_model_without_a_template_takes_no_turns(tiny_tokenizer: Any) -> None:
    assert not has_template(tiny_tokenizer)
    with pytest.raises(UsageError, match="without a chat template"):
        encode_turn(tiny_tokenizer, ASKED)


def test_the_answer_to_a_turn_stops_at_its_end_and_a_continuation_does_not(model: LoadedModel) -> None:
    (end,), wanted = end_of_turn(model.tokenizer), 40
    turns: list[str | Turn] = [Turn(f"Question {i}?") for i in range(6)]
    free = generate_from_ids(model, [encode_turn(model.tokenizer, t) for t in turns if isinstance(t, Turn)], wanted)
    # A tiny model ends a turn when it likes to: take what it says third as the end of a turn.
    third = free[0].ids[2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lifelong_edit.tasks.causal.task.end_of_turn", lambda tokenizer: (end, third))
        found = task_of(model).answer(model, [turns[0], "The capital of France is", *turns[1:]], wanted)
    assert found[0] == Generation(free[0].ids[: free[0].ids.index(third)], third)
    plain = task_of(model).answer(model, ["The capital of France is"], wanted)
    assert found[1] == plain[0]
    assert [len(g.ids) for g in plain] == [wanted] or plain[0].stopped


@pytest.mark.parametrize(
    ("said", "right", "contained"),
    [
        ("Paris", True, True),
        ("Paris, of course.", True, True),
        ("The capital of France is Paris.", False, True),
        ("It is PARIS!", False, True),
        ("Parisian life", False, False),
        ("It is Parisian, but not Comparis.", False, False),
        ("Lyon", False, False),
    ],
)
def test_an_answer_is_right_if_it_begins_with_the_target(
    model: LoadedModel, said: str, right: bool, contained: bool
) -> None:
    ids = tuple(ids_of(model.tokenizer, said))
    verdict = task_of(model).judge(model, ASKED, "Paris", Generation(ids))
    assert (verdict.right, verdict.contained, verdict.text) == (right, contained, said)


def test_the_loss_of_a_turn_is_that_of_target_and_end(model: LoadedModel) -> None:
    task = task_of(model)
    encoded = task.encode(model, ASKED, "Paris", "France")
    batch = task.collate(model, [encoded])
    with torch.no_grad():
        logits = task.logits(model, batch)
        chances = model.model(torch.tensor([encoded.ids])).logits[0].log_softmax(-1)
    by_hand = [float(chances[at - 1, encoded.ids[at]]) for at in range(encoded.answer_start, len(encoded.ids))]
    assert task.counts([encoded]) == [len(by_hand)]
    found = torch.nn.functional.cross_entropy(logits, torch.tensor(encoded.answer), reduction="sum")
    assert float(found) == pytest.approx(-sum(by_hand), rel=1e-4)
