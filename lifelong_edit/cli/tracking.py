"""Options of runs that hand their figures to experiment trackers, and which figures `stream` has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lifelong_edit.cli.common import Command, say
from lifelong_edit.cli.processes import world_at_hand
from lifelong_edit.cli.streaming import expected_forgotten, kept_share
from lifelong_edit.cli.trackers import FOLDER, TRACKERS, Tracking

if TYPE_CHECKING:
    from lifelong_edit.scheduler import BatchEvent, ReconsolidationEvent

_TRACK = click.option(
    "--track",
    "trackers",
    multiple=True,
    type=click.Choice(TRACKERS),
    help="Hand the run's figures to this tracker; may be given several times. One that fails is told and left.",
)
_FOLDER = click.option(
    "--track-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=FOLDER,
    show_default=True,
    metavar="DIR",
    help="Where tensorboard and wandb write.",
)


def tracking_options(command: Command) -> Command:
    """The options that say which trackers a run's figures go to."""
    return _TRACK(_FOLDER(command))


def tracking(options: dict[str, Any], folder: Path) -> Tracking:
    """Takes them out of the options of a command. Raises UsageError where a package is missing.

    folder: the run's own, whose name the trackers call it by: a run that goes on is the same run.
    """
    asked = options.pop("trackers")
    return Tracking(asked if world_at_hand().leads else (), folder.resolve().name, options.pop("track_dir"), say)


def tracked(
    events: Iterator[BatchEvent | ReconsolidationEvent], trackers: Tracking
) -> Iterator[BatchEvent | ReconsolidationEvent]:
    """Pass events on; the figures of those that committed a step go to the trackers, under the step's number."""
    from lifelong_edit.scheduler import BatchEvent

    for event in events:
        if event.step is not None:
            found = _batch(event) if isinstance(event, BatchEvent) else _reconsolidation(event)
            trackers.log(event.step, found)
        yield event


def _batch(event: BatchEvent) -> dict[str, float | None]:
    gate = event.report.get("gate", {})
    return {
        "batch/facts": event.facts,
        "batch/taken": gate["taken"] / gate["asked"] if gate.get("asked") else None,
        "batch/kept": kept_share(event),
        "batch/at_risk": expected_forgotten(event),
        "batch/conflicts": len(event.report.get("conflicts", ())),
        "batch/perplexity": gate.get("perplexity"),
        "batch/seconds": event.seconds,
    }


def _reconsolidation(event: ReconsolidationEvent) -> dict[str, float | None]:
    found: dict[str, float | None] = {"refused": event.refused, "kept": kept_share(event), "seconds": event.seconds}
    for name in ("retention", "locality", "perplexity"):
        found |= {f"{name}_{when}": event.report["guard"][when][name] for when in ("before", "after")}
    return {f"reconsolidation/{name}": value for name, value in found.items()}
