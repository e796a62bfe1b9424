"""Kinds of questions, and the one that a model answers. A task is a folder and a line here."""

from __future__ import annotations

from lifelong_edit.models import LoadedModel
from lifelong_edit.models.families import Kind
from lifelong_edit.tasks.causal.task import Causal
from lifelong_edit.tasks.contract import BaseAnswer, Example, Task, Verdict

__all__ = ["TASKS", "BaseAnswer", "Example", "Task", "Verdict", "task_of"]

TASKS: dict[Kind, Task] = {task.kind: task for task in (Causal(),)}


def task_of(model: LoadedModel) -> Task:
    """The task of a model, which its family says."""
    return TASKS[model.family.kind]
