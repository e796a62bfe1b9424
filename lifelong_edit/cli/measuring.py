"""What is asked of the model after a step, besides the batch itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lifelong_edit.cli.common import Command
from lifelong_edit.policies import sample_size

if TYPE_CHECKING:
    from lifelong_edit.eval.reports.sampling import Sampler
    from lifelong_edit.stores import Measurement
    from lifelong_edit.timeline import Timeline

_MEASURE = click.option(
    "--measure",
    "sample",
    type=click.IntRange(min=0),
    metavar="FACTS",
    help="After each step ask at most so many live facts, of all batches, and keep what came out: `report` draws it. "
    "0: none. Default: twice the batch size, 128 at most.",
)


def measuring_options(command: Command) -> Command:
    """The options of `stream` that say what is asked after each step."""
    return _MEASURE(command)


def measuring(options: dict[str, Any], batch_size: int) -> dict[str, Any]:
    """Takes them out of the options of a command, for the scheduler."""
    size = options.pop("sample")
    size = sample_size(batch_size) if size is None else size
    return {"measure": _Asking(size) if size else None}


def measure_after(timeline: Timeline, step: int) -> None:
    """Ask after a step that was not made by `stream`: as many as after the last one that was asked, if any was."""
    sizes = [found.sample for found in timeline.measurements("head") if found.sample]
    if sizes:
        timeline.keep_measurement(_Asking(sizes[-1])(timeline, step))


class _Asking:
    """Asks after a step; torch comes with the first one."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._sampler: Sampler | None = None

    def __call__(self, timeline: Timeline, step: int) -> Measurement:
        from lifelong_edit.eval.reports.sampling import Sampler

        self._sampler = self._sampler or Sampler(timeline, self._size)
        return self._sampler(step)
