"""A fact as a turn of a conversation: its own question, and what stands in for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lifelong_edit.errors import BadInputError
from lifelong_edit.facts import Fact, Probe, general_prompts, question_of, read_facts, read_prompts
from lifelong_edit.policies.identity import identities

RECORD: dict[str, Any] = {"subject": "France", "prompt": "The capital of France is", "target": "Paris"}
ASKED = {**RECORD, "question": "  What is the capital of France? "}


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Writes records to a file and gives its name."""

    def to_file(*records: dict[str, Any]) -> str:
        path = tmp_path / "facts.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return str(path)

    return to_file


def test_a_question_is_part_of_a_fact_only_where_it_is_given(write: Any) -> None:
    without, asked = (record.fact for record in read_facts([write(RECORD, ASKED)]))
    assert asked.question == "What is the capital of France?"
    assert without == Fact(**RECORD) and without.digest == "99047cde0a63fab8551e3cc8de168f9c"
    assert asked.digest != without.digest


@pytest.mark.parametrize("question", ["", "  ", 7])
def test_a_question_that_is_none_is_refused(write: Any, question: object) -> None:
    with pytest.raises(BadInputError, match="question"):
        list(read_facts([write({**RECORD, "question": question})]))
    with pytest.raises(BadInputError, match="question"):
        Probe("The capital of France is", question=question)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asked", "turn"),
    [
        (Fact(**{**ASKED, "question": "Which city?"}), "Which city?"),
        (Fact(**{**RECORD, "prompt": " Who runs France? "}), "Who runs France?"),
        (Fact(**RECORD), "Fill in the blank with a few words: The capital of France is ____"),
        (Probe("A river is"), "Fill in the blank with a few words: A river is ____"),
        (Probe("A river is", question="What is a river?"), "What is a river?"),
        (Probe("\u6cd5\u56fd\u7684\u9996\u90fd\u662f\uff1f"), "\u6cd5\u56fd\u7684\u9996\u90fd\u662f\uff1f"),
    ],
)
def test_a_fact_is_put_by_its_question_else_its_prompt_else_as_a_sentence_to_complete(
    asked: Fact | Probe, turn: str
) -> None:
    assert question_of(asked) == turn


def test_preserved_prompts_bring_their_questions(write: Any) -> None:
    told = {"prompt": "A river is", "question": "What is a river?"}
    fact = {**ASKED, "rephrases": ["France has the capital"], "target_true": "Paris"}
    found = {probe.prompt: probe.question for probe in read_prompts([write(told, fact)])}
    assert found == {
        "A river is": "What is a river?",
        "The capital of France is": "What is the capital of France?",
        "France has the capital": None,
    }


def test_two_facts_with_one_question_ask_for_the_same_thing() -> None:
    one = Fact(subject="France", prompt="The capital is", target="Paris", question="Which city is the capital?")
    other = Fact(subject="france", prompt="Which city is the capital?", target="Lyon")
    assert set(identities(one)) & set(identities(other))
    assert len(identities(Fact(**RECORD))) == 2


def test_general_prompts_are_many_and_each_has_a_question() -> None:
    found = general_prompts()
    assert len(found) >= 150
    assert all(probe.question and probe.target is None for probe in found)
    assert len({probe.prompt for probe in found}) == len({probe.question for probe in found}) == len(found)
    assert not any(probe.prompt.endswith((".", "?", "!")) for probe in found)
