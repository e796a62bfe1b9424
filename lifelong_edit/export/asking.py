"""The answers of what was written beside those of the state: how many differ, and which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lifelong_edit.models import LoadedModel, Question, Turn
from lifelong_edit.tasks import task_of, text_of

TOKENS = 20
"""Of each answer that is compared."""
_SHOWN = 20


def differing(
    one: LoadedModel,
    at: Mapping[str, Tensor],
    other: LoadedModel,
    near: Mapping[str, Tensor],
    questions: Sequence[Question],
    name: str,
) -> dict[str, Any]:
    """How many questions were asked, how many answers differ, and the first of these.

    at, near: ΔW by module, (d_in, d_out), at which each of the two models stands. name: what the other one is called
    in what is told.
    """
    if not questions:
        return {"asked": 0}
    said, task = [], task_of(one)
    room = [task.room(question, TOKENS) for question in questions]
    for loaded, shifts in ((one, at), (other, near)):
        with loaded.at(shifts):
            said.append(task.answer(loaded, questions, room))
    rows = zip(questions, *said, strict=True)
    differ = [(question, mine, its) for question, mine, its in rows if mine.with_end != its.with_end]
    shown = [
        {
            "question": text_of(question),
            "chat": isinstance(question, Turn),
            "state": task.text(one, question, mine),
            name: task.text(one, question, its),
        }
        for question, mine, its in differ[:_SHOWN]
    ]
    return {"asked": len(questions), "differ": len(differ), "differing": shown}
