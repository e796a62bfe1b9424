"""Kinds of questions, and the one that a model answers. A task is a folder and a line here."""

from __future__ import annotations

from lifelong_edit.errors import UsageError
from lifelong_edit.models import Outlined
from lifelong_edit.models.families import CALLED, Kind
from lifelong_edit.tasks.asking import (
    Asked,
    form_of,
    forms_of,
    leading,
    question_in,
    questions_of,
    ready,
    sentence_of,
    settled,
    text_of,
)
from lifelong_edit.tasks.causal.task import Causal
from lifelong_edit.tasks.classify.task import Classify
from lifelong_edit.tasks.contract import WIDTH, BaseAnswer, Cutter, Example, Task, Verdict
from lifelong_edit.tasks.masked.task import Masked
from lifelong_edit.tasks.seq2seq.task import Seq2Seq

__all__ = [
    "TASKS",
    "WIDTH",
    "Asked",
    "BaseAnswer",
    "Cutter",
    "Example",
    "Task",
    "Verdict",
    "form_of",
    "forms_of",
    "leading",
    "question_in",
    "questions_of",
    "ready",
    "require_causal",
    "sentence_of",
    "settled",
    "task_of",
    "text_of",
]

TASKS: dict[Kind, Task] = {task.kind: task for task in (Causal(), Classify(), Masked(), Seq2Seq())}


def task_of(model: Outlined) -> Task:
    """The task of a model, which its family says."""
    return TASKS[model.family.kind]


def require_causal(model: Outlined, what: str, option: str | None = None) -> None:
    """Raise UsageError for a model that does not write on by itself, where something is for such models alone.

    option: the one that asked for it, to be left out.
    """
    if model.family.kind != "causal":
        raise UsageError(
            f"found {CALLED[model.family.kind][0]}, but {what} is for decoders, which write on by themselves; "
            f"{'take such a model' if option is None else f'leave out {option}'}"
        )
