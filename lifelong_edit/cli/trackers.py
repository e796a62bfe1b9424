"""Figures of a run for experiment trackers (TensorBoard and others), through accelerate's adapters.

A tracker is a bystander: whatever it raises, the run goes on without it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from lifelong_edit.errors import UsageError

TRACKERS = ("tensorboard", "trackio", "mlflow", "wandb")
"""Named as accelerate names them, and as their packages are."""
FOLDER = Path("runs")


class Tracking:
    """The trackers of one run, a context manager; each begins with the first figures, so that no figures leave nothing.

    names: of TRACKERS. run: what trackers call the run (TensorBoard: the folder of its event files in `folder`; the
    others: the project or experiment). folder: where TensorBoard and wandb write; trackio and mlflow go by their own
    environment variables. Raises UsageError where accelerate or a tracker's package is not installed.
    """

    def __init__(
        self, names: Sequence[str], run: str, folder: Path = FOLDER, say: Callable[[str], None] = print
    ) -> None:
        for package in ("accelerate", *names) if names else ():
            if find_spec(package) is None:
                raise UsageError(
                    f"found --track {', '.join(names)} without the package {package}, expected it to be installed; "
                    f"`pip install 'lifelong-edit[trackers]'` brings accelerate and TensorBoard, others are extra"
                )
        self._waiting, self._run, self._folder, self._say = list(dict.fromkeys(names)), run, folder, say
        self._begun: dict[str, Any] = {}

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for name in list(self._begun):
            self._try(name, lambda name=name: self._finish(name))  # type: ignore[misc]
        self._begun.clear()

    def log(self, step: int, figures: Mapping[str, float | None]) -> None:
        """Hand figures on under their names; those that are None were not measured, and are left out."""
        while self._waiting:
            name = self._waiting.pop(0)
            self._try(name, lambda name=name: self._begin(name))  # type: ignore[misc]
        known = {name: float(value) for name, value in figures.items() if value is not None}
        for name in list(self._begun):
            self._try(name, lambda name=name: self._begun[name].log(known, step=step))  # type: ignore[misc]

    def _begin(self, name: str) -> None:
        from accelerate import PartialState, tracking

        PartialState()  # some adapters log through accelerate, which refuses to before it has a state
        makers: dict[str, Callable[[], Any]] = {
            "tensorboard": lambda: tracking.TensorBoardTracker(self._run, str(self._folder)),
            "trackio": lambda: tracking.TrackioTracker(self._run),
            "mlflow": lambda: tracking.MLflowTracker(self._run),
            "wandb": lambda: tracking.WandBTracker(self._run, dir=str(self._folder)),
        }
        self._folder.mkdir(parents=True, exist_ok=True)
        tracker = makers[name]()
        tracker.start()
        self._begun[name] = tracker

    def _finish(self, name: str) -> None:
        if name == "trackio":
            # accelerate's adapter leaves the run to be finished again when the process ends, which prints to stdout.
            import trackio

            trackio.finish()
        else:
            self._begun[name].finish()

    def _try(self, name: str, act: Callable[[], None]) -> None:
        """What fails is said once, and its tracker gets nothing more."""
        try:
            with contextlib.redirect_stdout(sys.stderr):  # what trackers have to say is no data
                act()
        except Exception as error:  # a tracker may raise whatever its libraries, its disk and its server do
            self._begun.pop(name, None)
            self._say(f"{name} has failed and gets no more figures ({type(error).__name__}: {error}); the run goes on")
