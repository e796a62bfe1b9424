"""The command that edits: stream."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lifelong_edit.cli.common import (
    author_option,
    device_option,
    json_option,
    map_option,
    opened,
    reader_of,
    reason_option,
    relations_option,
    say,
    store_option,
    wait_option,
)
from lifelong_edit.cli.measuring import measuring, measuring_options
from lifelong_edit.cli.processes import world_at_hand
from lifelong_edit.cli.reviewing import handling, handling_options
from lifelong_edit.cli.setup import BUNDLED, make_store, making_options, require_same_store
from lifelong_edit.cli.stopping import stopping
from lifelong_edit.cli.streaming import report, show_all, summarise
from lifelong_edit.cli.tracking import tracked, tracking, tracking_options
from lifelong_edit.errors import LifelongEditError, UsageError

if TYPE_CHECKING:
    from lifelong_edit.facts import Reader, Record
    from lifelong_edit.timeline import Timeline


@click.command()
@click.argument("files", nargs=-1, required=True)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Facts edited together; a record that contradicts one of its batch begins another.",
)
@click.option(
    "--reconsolidate",
    "policy",
    default="never",
    show_default=True,
    metavar="POLICY",
    help="When to solve again over all live facts: never, every:N (edit steps), geometric (at 4, 8, 16, 32 ... edit "
    "steps: whenever as many were made since the last time as up to it), retention:SHARE (when a smaller share of a "
    "sample of the live facts is answered right), forecast:BOUND (before the batch with which a larger share of the "
    "live facts would be forgotten since the last time: the sum of what is forecast of each batch by its keys, before "
    "it is solved).",
)
@map_option
@relations_option
@measuring_options
@tracking_options
@handling_options
@click.option(
    "--again",
    is_flag=True,
    help="Also facts that were retracted, purged or dismissed, and those known only from steps of this branch that "
    "were rolled back.",
)
@click.option("--skip-bad", is_flag=True, help="Leave bad records out, count and report them, instead of stopping.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Commit nothing; show conflicts, what would take, what it would make forgotten, what the gate says. Each "
    "batch is tried on what those before it would leave; nothing is reconsolidated, whatever the policy.",
)
@reason_option
@author_option
@click.option("--follow", is_flag=True, help="Go on with the lines that are appended to the files, until stopped.")
@click.option(
    "--idle",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="With --follow: edit a batch that is not full after so long without a new record.",
)
@making_options
@device_option
@wait_option
@store_option
@json_option
def stream(
    files: tuple[str, ...],
    batch_size: int,
    policy: str,
    again: bool,
    skip_bad: bool,
    dry_run: bool,
    reason: str | None,
    author: str | None,
    follow: bool,
    idle: float,
    device: str | None,
    wait: float,
    store: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Edit facts batch by batch, each batch one committed step.

    FILES are files (JSON, CSV, TSV, Parquet, Arrow), globs, - for standard input, folders that `datasets` has saved, or
    hf:OWNER/NAME[:SPLIT]. Records need `prompt` and `target`, for some rules `subject`; forty shapes are recognised as
    they are, others by --map. `facts --check FILES` shows what is read; fields that are not used are named in the end.

    Makes a store with the embedded default if there is none; the options of `init` then say what for. Interrupted or
    killed, the same command goes on where it stopped: what was consumed is passed over, and so is what equals a fact in
    force. Files are read through once before the first edit, so that a malformed record is found before anything is
    applied; one that this model cannot take is found before its batch is. Input without any fact makes no store.

    A file is known again after lines were appended to it. With --follow the run waits for such lines: full batches are
    edited as they come, one that is not full after --idle seconds; Ctrl-C or SIGTERM ends the run after the batch at
    hand, with exit code 0. A file that was replaced or cut short is told, and read from its beginning. A
    reconsolidation that its guard refuses is told and logged, and the run goes on.

    Of each batch the table shows how many facts have `taken` (are answered by the edited model), how many in force it
    is expected to make forgotten (`at risk`), the share of earlier facts, of those asked (--measure), that are still
    answered (`kept`), and the perplexity on the store's sample of text (`status` has the base model's).

    \b
    Examples:
      lifelong-edit stream facts/*.jsonl
      lifelong-edit stream week.jsonl --dry-run
      lifelong-edit stream archive/*.jsonl --reconsolidate geometric
      cat week.jsonl | lifelong-edit stream - --batch-size 32 --reason "week 12"
      lifelong-edit stream --follow news.jsonl --idle 600 --wait 60
    """
    from lifelong_edit.facts import ReadReport, follow_facts, read_facts
    from lifelong_edit.policies import FixedSize, reconsolidation_policy
    from lifelong_edit.scheduler import Scheduler, Summary

    how = handling(options, store) | measuring(options, batch_size) | {"skip_bad": skip_bad, "say": say}
    due, trackers, world = reconsolidation_policy(policy), tracking(options, store), world_at_hand()
    read, known, reader = ReadReport(), _Known(), reader_of(options.pop("mapping"), options.pop("relations"))
    total = world.lead(lambda: _survey(files, reader, skip_bad=skip_bad, follow=follow, dry_run=dry_run))
    reading: dict[str, Any] = {"skip_bad": skip_bad, "report": read, "known": known, "reader": reader}
    records: Iterator[Record | None] | None = None if follow else world.led(read_facts(files, **reading))
    if records is not None and not world.lead(lambda: _is_there(store)):
        records = _unless_empty(records)
        if records is None:
            report((), summarise(Summary(), read), files, None, as_json=as_json, dry_run=dry_run)
            return
    with _store_for(store, device, author, options, dry_run, wait) as timeline, contextlib.ExitStack() as held:
        known.timeline = timeline
        if records is None:
            end = held.enter_context(stopping(say))
            records = world.led(follow_facts(files, idle=idle, stopped=end, say=say, **reading))
        scheduler = Scheduler(timeline, batching=FixedSize(batch_size), reconsolidation=due, **how)
        events = scheduler.run(records, again=again, dry_run=dry_run, reason=reason)
        told = tracked(events, held.enter_context(trackers))
        shown = show_all(told, timeline, total, as_json=as_json, dry_run=dry_run)
        report(shown, summarise(scheduler.summary, read), files, timeline.head, as_json=as_json, dry_run=dry_run)


class _Known:
    """What the store has consumed of a file, once there is one."""

    timeline: Timeline | None = None

    def __call__(self, file_digest: str) -> Collection[int]:
        return () if self.timeline is None else self.timeline.consumed_in(file_digest)


def _is_there(store: Path) -> bool:
    """Whether there is a store, or at least something that a new one could not take the place of."""
    return store.exists() and (not store.is_dir() or any(store.iterdir()))


def _unless_empty(records: Iterator[Record | None]) -> Iterator[Record | None] | None:
    """The same records, the first of them read by now; None where there are none."""
    first = next(records, None)
    return None if first is None else itertools.chain([first], records)


def _survey(files: Sequence[str], reader: Reader, *, skip_bad: bool, follow: bool, dry_run: bool) -> int | None:
    """How many facts there are to come, where looking ahead costs nothing; bad input is found here."""
    from lifelong_edit.facts import can_read_twice, read_facts, require_growing

    if follow and dry_run:
        raise UsageError("found --follow with --dry-run, expected one of them; a dry run ends with what is there")
    if follow:
        require_growing(files)
        return None
    if not can_read_twice(files):
        return None
    return sum(1 for _ in read_facts(files, skip_bad=skip_bad, reader=reader))


@contextlib.contextmanager
def _store_for(
    store: Path, device: str | None, author: str | None, options: dict[str, Any], dry_run: bool, wait: float
) -> Iterator[Timeline]:
    """The store, made first where there is none; a dry run then works on one that is thrown away."""
    world = world_at_hand()
    with contextlib.ExitStack() as stack:
        made = None
        if not world.lead(lambda: _is_there(store)):
            place = world.lead(lambda: stack.enter_context(_place_to_try())) if dry_run else store
            made = _made(place, device, author, options)
        if made is None:
            told: dict[str, Any] = {"device": device, "author": author, "wait": wait, "model": options["model"]}
            timeline = stack.enter_context(opened(store, read_only=dry_run, **told))
            require_same_store(timeline, options)
            yield timeline
        else:
            yield stack.enter_context(made)


@contextlib.contextmanager
def _place_to_try() -> Iterator[Path]:
    """Where a store may be made that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "store"


def _made(store: Path, device: str | None, author: str | None, options: dict[str, Any]) -> Timeline | None:
    """A new store; None where another run made one meanwhile, which is as good."""
    try:
        opening = f"there is no store at {store}: making one for {_model(options)}"
        return make_store(store, device, options, opening, author)
    except LifelongEditError:
        if not world_at_hand().lead(lambda: _is_there(store)):
            raise
    say(f"another run made {store} meanwhile: using that")
    return None


def _model(options: dict[str, Any]) -> str:
    return options["model"] or BUNDLED
