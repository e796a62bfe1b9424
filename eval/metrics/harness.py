"""What an edited model can still do: tasks of lm-evaluation-harness (EleutherAI), beside the base model's figures.

The harness is an extra (`tasks`); nothing of it is imported before a `Harness` is made.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lifelong_edit.errors import LifelongEditError, UsageError, near, said
from lifelong_edit.models import BASE, LoadedModel
from lifelong_edit.tasks import require_causal

BATCH_SIZE = 16


@dataclass(frozen=True)
class TaskFigure:
    """One metric of one task. error: its standard error as the harness gives it; None where it has none."""

    task: str
    metric: str
    """With the harness's filter behind a comma where it is not `none`."""
    now: float
    now_error: float | None
    base: float
    base_error: float | None
    higher_is_better: bool | None
    questions: int


class Harness:
    """Tasks to run on a model that is loaded already.

    names: of the harness's tasks, groups and tags, or of tasks in `folder` (its YAML files, looked through with all
    folders beneath). A task may name Python code beside its YAML file, which is then run: give only folders whose
    content you trust. limit: questions of each task at most, the first ones.
    Raises UsageError where the harness is not installed, and for a name that it does not know.
    """

    def __init__(self, names: Sequence[str], folder: Path | None = None, limit: int | None = None) -> None:
        for package in ("lm_eval", "accelerate"):
            if find_spec(package) is None:
                raise UsageError(
                    f"found --tasks without the package {package}, expected lm-evaluation-harness to be installed: "
                    "`pip install 'lifelong-edit[tasks]'`"
                )
        self._names, self._limit = list(dict.fromkeys(names)), limit
        with _quiet():
            self._manager = _manager(self._names, folder)
        require_known(self._names, self._manager.all_tasks)

    def run(self, loaded: LoadedModel) -> list[TaskFigure]:
        """The figures of the model as it stands, and at its base weights; it is left as it was.

        Raises LifelongEditError where the harness fails: a data set that is out of reach, a task of a wrong kind; and
        UsageError for a model that is not causal.
        """
        require_causal(loaded, "what lm-evaluation-harness asks", "--tasks")
        now = self._evaluate(loaded)
        with loaded.at(BASE):
            base = self._evaluate(loaded)
        found = []
        for task, figures in now["results"].items():
            for key, value in figures.items():
                metric, comma, kind = key.partition(",")
                # Standard errors stand among the figures, under the metric's name; so do names and sample sizes.
                if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                    continue
                error, base_error = (
                    _number(side["results"][task].get(f"{metric}_stderr,{kind}")) for side in (now, base)
                )
                name = metric if kind == "none" else key
                better = now["higher_is_better"].get(task, {}).get(metric)
                count = now["n-samples"].get(task, {}).get("effective", 0)
                figure = TaskFigure(
                    task, name, float(value), error, float(base["results"][task][key]), base_error, better, count
                )
                found.append(figure)
        return found

    def _evaluate(self, loaded: LoadedModel) -> Mapping[str, Any]:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        with _quiet():
            try:
                # The harness gives its tokenizer a padding token, so it gets one of its own.
                model = HFLM(
                    pretrained=loaded.model,
                    tokenizer=copy.deepcopy(loaded.tokenizer),
                    max_length=loaded.context,
                    batch_size=BATCH_SIZE,
                )
                found: Mapping[str, Any] = simple_evaluate(
                    model, tasks=self._names, task_manager=self._manager, limit=self._limit, log_samples=False
                )
            except Exception as error:  # the harness raises what its tasks, its data sets and the hub raise
                if isinstance(error, AssertionError | TypeError | KeyError | ValueError):  # not about reaching data
                    raise LifelongEditError(
                        f"lm-evaluation-harness failed on {', '.join(self._names)} with {type(error).__name__}: "
                        f"{said(error)}; see whether the task runs by itself, or choose another"
                    ) from error
                raise LifelongEditError(
                    f"lm-evaluation-harness failed on {', '.join(self._names)}: {type(error).__name__}: {said(error)}; "
                    "see that their data can be reached (a task of --tasks-path can name local files)"
                ) from error
        return found


def require_known(names: Sequence[str], known: Sequence[str]) -> None:
    """Raise UsageError, with the names near it, at the first name that is not known."""
    for name in names:
        if name not in known:
            advice = near(name, known) or "; correct it"
            raise UsageError(f"found the task {name!r}, expected one of the harness or of --tasks-path{advice}")


def _manager(names: Sequence[str], folder: Path | None) -> Any:
    """What knows the tasks: those of the folder alone where they will do, since the harness's own take long to read."""
    from lm_eval.tasks import TaskManager

    if folder is None:
        return TaskManager()
    own = TaskManager(include_path=str(folder), include_defaults=False)
    return own if set(names) <= set(own.all_tasks) else TaskManager(include_path=str(folder))


@contextmanager
def _quiet() -> Iterator[None]:
    """Within the context the harness logs nothing below an error."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _number(value: object) -> float | None:
    """A figure, or None for the harness's "N/A"."""
    return float(value) if isinstance(value, int | float) else None
