"""The record shapes of data that was not made for editing: questions and answers, instructions, conversations, triples.

A reader is a function of the record's `Fields`, as in `published`.
"""

from __future__ import annotations

from lifelong_edit.errors import BadInputError
from lifelong_edit.facts.checks import shown
from lifelong_edit.facts.fields import Fields, make_fact
from lifelong_edit.facts.published import Read
from lifelong_edit.facts.record import Fact

USERS = ("user", "human", "prompter", "instruction")
ASSISTANTS = ("assistant", "gpt", "model", "bot")
RIGHT = ("answer", "answers", "best_answer", "obj", "possible_answers")
"""What the right answer to a question is called; the first that a record has."""


def read_question(fields: Fields) -> Read:
    """A question and its answers: QA pairs, SQuAD, TriviaQA, Natural Questions, PopQA, TruthfulQA."""
    prompt = fields.require("question")
    named = next((name for name in RIGHT if name in fields), "answer")
    said = fields.answers(named)
    if len(said) > 1:
        fields.spare(named)
    return [
        make_fact(
            fields,
            subject=fields.text("subject", "subj"),
            prompt=prompt,
            target=said[0] if said else "",
            question=prompt,
            relation=fields.text("prop"),
        )
    ]


def read_instruction(fields: Fields) -> Read:
    """Alpaca's instructions, with or without an input."""
    text, given = fields.require("instruction"), fields.text("input")
    prompt = text if given is None else f"{text}\n\n{given}"
    return [_taught(fields, prompt, fields.require("output", "response"))]


def read_completion(fields: Fields) -> Read:
    """A text and how it goes on, under any of the usual pairs of names."""
    named = next(pair for pair in COMPLETIONS if set(pair) <= set(fields.names))
    prompt, target = (fields.require(name) for name in named)
    return [make_fact(fields, subject=fields.text("subject"), prompt=prompt, target=target)]


COMPLETIONS = (("prompt", "completion"), ("prompt", "response"), ("input", "output"), ("query", "response"))
"""Pairs of names that a text and its continuation go by."""


def read_labelled(fields: Fields) -> Read:
    """A text and its label, for a classifier."""
    subject = fields.text("subject")
    return [make_fact(fields, subject=subject, prompt=fields.require("text"), target=fields.require("label"))]


def read_conversation(fields: Fields) -> Read:
    """A conversation of one question and its answer, as OpenAI (`messages`) and ShareGPT (`conversations`) write it."""
    turns = fields.each("messages") or fields.each("conversations")
    said: list[tuple[str, str]] = []
    for turn in turns:
        who = (turn.text("role", "from") or "").casefold()
        if who in USERS or who in ASSISTANTS:
            content = turn.peek("content")
            if content is not None and not isinstance(content, str):
                raise BadInputError(f"found {shown(content)} as a message, expected text; leave out what is none")
            said.append(("user" if who in USERS else "assistant", turn.require("content", "value")))
    if [who for who, _ in said] != ["user", "assistant"]:
        raise BadInputError(
            f"found a conversation of {len(said)} turns, expected one question and its answer; make a record of each "
            "that stands by itself"
        )
    return [_taught(fields, said[0][1], said[1][1])]


def _taught(fields: Fields, prompt: str, target: str) -> Fact:
    return make_fact(fields, subject=fields.text("subject"), prompt=prompt, target=target, question=prompt)
