"""A fact or a prompt as somebody would put it in a conversation: one turn that asks for what the prompt leads up to."""

from __future__ import annotations

from lifelong_edit.facts.record import Fact, Probe

SENTENCE = "Fill in the blank with a few words: {prompt} ____"
"""A prompt that is no question, put as a turn. Of nine wordings tried on an instruct model of 135 million parameters
this one was answered with what was meant most often."""


def question_of(asked: Fact | Probe) -> str:
    """A fact or a probe as a turn: its own `question`, else what `as_question` makes of its prompt."""
    return asked.question or as_question(asked.prompt)


def as_question(prompt: str) -> str:
    """A prompt as a turn: itself where it ends as a question does, else as a sentence to be completed (`SENTENCE`)."""
    text = prompt.strip()
    return text if text.endswith(_QUESTION_MARKS) else SENTENCE.format(prompt=text)


def prompt_in(question: str) -> str:
    """The inverse of `as_question`: the prompt within a sentence to be completed, any other question as it is."""
    before, _, after = SENTENCE.partition("{prompt}")
    inside = question.startswith(before) and question.endswith(after) and len(question) > len(before) + len(after)
    return question[len(before) : -len(after)] if inside else question


# The Latin one, Greek, Arabic, Armenian, Ethiopic and the wide one of Chinese and Japanese.
_QUESTION_MARKS = ("?", "\u037e", "\u061f", "\u055e", "\u1367", "\uff1f")
