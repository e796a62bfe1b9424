"""`watch`: what a run does to a store, as it happens. It only reads the store, and may begin before there is one."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lifelong_edit.cli.common import cell, counted, opened, print_row, say, store_option
from lifelong_edit.cli.looking import describe_step
from lifelong_edit.errors import StoreDamagedError, StoreError

if TYPE_CHECKING:
    from rich.table import Table

    from lifelong_edit.stores import Measurement
    from lifelong_edit.timeline import Timeline

_COLUMNS: tuple[tuple[str, int], ...] = (
    ("step", 5),
    ("kind", 13),
    ("facts", 6),
    ("taken", 6),
    ("conflicts", 9),
    ("kept", 5),
    ("locality", 8),
    ("perplexity", 10),
    ("seconds", 8),
    ("time", 8),
)
_BARS = " ▁▂▃▄▅▆▇█"
_KINDS = {"reconsolidate": "green", "refused": "yellow", "rollback": "magenta", "retract": "magenta"}


@dataclass
class Seen:
    """What is known of a store by now."""

    status: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    """By step, those of the log in order."""
    writer: str | None = None

    @property
    def complete(self) -> int:
        """How many rows will not change any more: what is asked after a step comes a moment after it."""
        if not self.rows or self.writer is None:
            return len(self.rows)
        from lifelong_edit.scheduler import MEASURED

        last = self.rows[-1]
        waits = last["kept"] is None and last["kind"] in MEASURED
        return len(self.rows) - waits


@click.command()
@click.option(
    "--every",
    type=click.FloatRange(min=0.05),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How often to look.",
)
@click.option(
    "--idle",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="End after so long without a new step and without a writer. Default: never.",
)
@click.option("--plain", is_flag=True, help="A line for each step, as where there is no terminal.")
@store_option
def watch(every: float, idle: float | None, plain: bool, store: Path) -> None:
    """A running stream, live: its steps as they are committed, what is still known of earlier batches, conflicts.

    In a terminal a table of the last steps that is drawn anew; elsewhere, or with --plain, one line for each step,
    those that are there first. It reads the log alone, in a snapshot of its own: the run is not disturbed, and may be
    one that is to begin. Ctrl-C ends it, with exit code 0.

    `kept`: share of earlier batches' facts that are still answered, of those that `stream` asked after the step
    (its --measure); `locality`: share of their neighbours that the model answers as the base model does.

    \b
    Examples:
      lifelong-edit watch
      lifelong-edit watch --plain --idle 60 --store news
    """
    shown = _Lines() if plain or not sys.stdout.isatty() else _Screen()
    try:
        with shown:
            for seen in _looks(store, every, idle):
                shown.show(seen)
    except KeyboardInterrupt:
        say("no longer watching; the run goes on")


def _looks(store: Path, every: float, idle: float | None) -> Iterator[Seen]:
    """What there is, again and again; ends when nothing has happened for so long."""
    from lifelong_edit.stores import LOCK_FILE, holder

    seen, changed = Seen(), time.monotonic()
    with ExitStack() as stack:
        timeline: Timeline | None = None
        while True:
            before = (len(seen.rows), seen.complete, seen.writer)
            if timeline is None and (store / "store.json").exists():
                timeline = stack.enter_context(opened(store, read_only=True))
            if timeline is not None:
                try:
                    _look(timeline, seen)
                except StoreDamagedError:
                    raise
                except StoreError:  # compacted or restored: another folder has taken its place
                    stack.close()
                    timeline = None
            seen.writer = holder(store / LOCK_FILE)
            if before != (len(seen.rows), seen.complete, seen.writer):
                changed = time.monotonic()
            yield seen
            if idle is not None and seen.writer is None and time.monotonic() - changed >= idle:
                if timeline is None:
                    say(f"there is no store at {store} yet; without --idle this waits for one")
                return
            time.sleep(every)


def _look(timeline: Timeline, seen: Seen) -> None:
    if timeline.head + 1 == len(seen.rows) and seen.complete == len(seen.rows):
        return
    measured = {found.step: found for found in timeline.measurements()}
    records = timeline.log()
    known = max(0, min(seen.complete, len(records)) - 1)  # the last one may have been measured since
    seen.rows[known:] = [_row(record, measured.get(record.step)) for record in records[known:]]
    seen.status = timeline.status()


def _row(record: Any, measured: Measurement | None) -> dict[str, Any]:
    row = describe_step(record)
    return row | {
        "conflicts": len(record.conflicts) if record.added or record.kind == "decide" else None,
        "kept": None if measured is None else _kept(measured),
        "locality": None if measured is None else measured.share("locality"),
        "seconds": record.seconds,
        "time": record.time[11:19],
        "facts": row["facts"] or None,
    }


def _kept(measured: Measurement) -> float | None:
    """Of earlier facts; after the first batch, which has none before it, of its own."""
    earlier = measured.share("efficacy", earlier=True)
    return measured.share("efficacy") if earlier is None else earlier


class _Lines:
    """A line for each step."""

    def __init__(self) -> None:
        self._told = 0

    def __enter__(self) -> _Lines:
        print_row([(name, width, name) for name, width in _COLUMNS])
        return self

    def __exit__(self, *_: object) -> None:
        sys.stdout.flush()

    def show(self, seen: Seen) -> None:
        """Print the steps that are new."""
        for row in seen.rows[self._told : seen.complete]:
            print_row([(name, width, row[name]) for name, width in _COLUMNS])
        sys.stdout.flush()
        self._told = max(self._told, seen.complete)


class _Screen:
    """A table of the last steps, drawn anew in its place."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console()
        self._live = Live(console=self._console, auto_refresh=False, screen=False)

    def __enter__(self) -> _Screen:
        self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._live.__exit__(*error)

    def show(self, seen: Seen) -> None:
        """Draw what is known."""
        self._live.update(self.drawn(seen, self._console.height), refresh=True)

    def drawn(self, seen: Seen, height: int) -> Any:
        """The table between a line on the store and one on what is kept."""
        from rich.console import Group
        from rich.text import Text

        if not seen.rows:
            return Text("waiting for a store …", style="dim")
        status = seen.status
        writing = seen.writer is not None
        doing = Text(f"writing: process {seen.writer}", "bold green") if writing else Text("idle", "dim")
        what = f"{cell(status['model'])}, {status['editor']}, branch {cell(status['branch'])}"
        live = counted(status["live_facts"], "live fact")
        top = Text.assemble((cell(status["store"], 80), "bold"), f"  {what}, {live}  ", doing)
        return Group(top, _table(seen.rows[-max(3, height - 8) :]), _foot(seen.rows))


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name, _ in _COLUMNS:
        table.add_column(name, justify="left" if name == "kind" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(cell(row[name]) for name, _ in _COLUMNS), style=_KINDS.get(row["kind"], ""))
    return table


def _foot(rows: Sequence[dict[str, Any]]) -> Any:
    """Totals, and what was kept over the last steps, as bars from half to all."""
    from rich.text import Text

    kept = [row["kept"] for row in rows if row["kept"] is not None][-40:]
    bars = "".join(_BARS[max(0, min(8, round(16 * (share - 0.5))))] for share in kept)
    taught = sum(row["facts"] or 0 for row in rows if row["kind"] == "edit")
    again = sum(row["kind"] == "reconsolidate" for row in rows)
    met = sum(row["conflicts"] or 0 for row in rows)
    said = f"{counted(taught, 'fact')} taught, {counted(met, 'conflict')}, {counted(again, 'reconsolidation')}"
    return Text.assemble(said, f"  kept {bars} {cell(kept[-1])}" if kept else "")
