"""The command that edits: stream."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lifelong_edit.cli.common import (
    author_option,
    cell,
    counted,
    device_option,
    json_option,
    one_line,
    opened,
    print_json,
    print_row,
    print_table,
    progress_bar,
    reason_option,
    say,
    store_option,
)
from lifelong_edit.cli.looking import guarded
from lifelong_edit.cli.reconsolidating import tell_refusal
from lifelong_edit.cli.setup import BUNDLED, make_store, making_options, require_same_store

if TYPE_CHECKING:
    from lifelong_edit.facts import Fact, ReadReport, Record
    from lifelong_edit.scheduler import BatchEvent, ReconsolidationEvent, Summary
    from lifelong_edit.timeline import Timeline

_COLUMNS: tuple[tuple[str, int], ...] = (
    ("step", 5),
    ("records", 7),
    ("facts", 6),
    ("taken", 6),
    ("skipped", 7),
    ("conflicts", 9),
    ("at risk", 7),
)
_COLUMNS += (("perplexity", 10), ("seconds", 8), ("weights", 12))


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
@click.option("--again", is_flag=True, help="Also facts known only from steps of this branch that were rolled back.")
@click.option("--skip-bad", is_flag=True, help="Leave bad records out, count and report them, instead of stopping.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Commit nothing; show conflicts, what would take, what it would make forgotten, what the gate says. Every "
    "batch is tried on the head as it stands, and nothing is reconsolidated, whatever the policy.",
)
@reason_option
@author_option
@making_options
@device_option
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
    device: str | None,
    store: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Edit facts batch by batch, each batch one committed step.

    FILES are files, globs, - for standard input, or hf:OWNER/NAME[:SPLIT] for a data set. A record needs `subject`,
    `prompt` and `target`; it may have `id`, `relation`, `rephrases`, `locality`, `portability`, `target_true`, `date`,
    `source`, `author`. Records of CounterFact, zsRE, FEVER and hallucination data are recognised as they are.

    Makes a store with the embedded default if there is none; the options of `init` then say what for. Interrupted or
    killed, the same command goes on where it stopped: what was consumed is passed over, and so is what equals a fact in
    force. Files are read through once before the first edit, so that a malformed record is found before anything is
    applied; one that this model cannot take is found before its batch is. Input without any fact is no error, and makes
    no store.

    A reconsolidation that its guard refuses is told and logged, and the run goes on; the exit code stays 0.

    Of each batch the table shows how many of its facts have `taken` (are answered by the edited model), how many facts
    in force it is expected to make forgotten (`at risk`), and the perplexity on the store's sample of text (`status`
    has the base model's).

    \b
    Examples:
      lifelong-edit stream facts/*.jsonl
      lifelong-edit stream week.jsonl --dry-run
      lifelong-edit stream archive/*.jsonl --reconsolidate geometric
      cat week.jsonl | lifelong-edit stream - --batch-size 32 --reason "week 12"
    """
    from lifelong_edit.facts import ReadReport, read_facts
    from lifelong_edit.policies import FixedSize, reconsolidation_policy
    from lifelong_edit.scheduler import BatchEvent, Scheduler, Summary

    due = reconsolidation_policy(policy)
    total = _survey(files, skip_bad)
    read = ReadReport()
    found = read_facts(files, skip_bad=skip_bad, report=read)
    records = found if _is_there(store) else _unless_empty(found)
    if records is None:
        _report((), _summarise(Summary(), read), files, None, as_json=as_json, dry_run=dry_run)
        return
    with _store_for(store, device, author, options, dry_run) as timeline:
        scheduler = Scheduler(timeline, batching=FixedSize(batch_size), reconsolidation=due, skip_bad=skip_bad, say=say)
        events = scheduler.run(records, again=again, dry_run=dry_run, reason=reason)
        shown = list(_show_events(events, total, as_json=as_json))
        batches = [event for event in shown if isinstance(event, BatchEvent)]
        _tell_conflicts(batches, timeline, as_json=as_json, dry_run=dry_run)
        _tell_forecasts(batches, timeline, as_json=as_json)
        summary = _summarise(scheduler.summary, read)
        _report(shown, summary, files, timeline.head, as_json=as_json, dry_run=dry_run)


def _is_there(store: Path) -> bool:
    """Whether there is a store, or at least something that a new one could not take the place of."""
    return store.exists() and (not store.is_dir() or any(store.iterdir()))


def _unless_empty(records: Iterator[Record]) -> Iterator[Record] | None:
    """The same records, the first of them read by now; None where there are none."""
    first = next(records, None)
    return None if first is None else itertools.chain([first], records)


def _survey(files: Sequence[str], skip_bad: bool) -> int | None:
    """How many facts there are to come, where looking ahead costs nothing; bad input is found here."""
    from lifelong_edit.facts import can_read_twice, read_facts

    if not can_read_twice(files):
        return None
    return sum(1 for _ in read_facts(files, skip_bad=skip_bad))


@contextlib.contextmanager
def _store_for(
    store: Path, device: str | None, author: str | None, options: dict[str, Any], dry_run: bool
) -> Iterator[Timeline]:
    """The store, made first where there is none; a dry run then works on one that is thrown away."""
    if _is_there(store):
        with opened(store, read_only=dry_run, device=device, author=author) as timeline:
            require_same_store(timeline, options)
            yield timeline
        return
    opening = f"there is no store at {store}: making one for {options['model'] or BUNDLED}"
    with contextlib.ExitStack() as stack:
        if dry_run:
            store = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "store"
        yield stack.enter_context(make_store(store, device, options, opening, author))


def _show_events(
    events: Iterator[BatchEvent | ReconsolidationEvent], total: int | None, *, as_json: bool
) -> Iterator[BatchEvent | ReconsolidationEvent]:
    """Print each event as it comes (unless all is printed as JSON in the end) and pass it on."""
    from lifelong_edit.scheduler import BatchEvent

    if not as_json:
        print_row([(name, width, name) for name, width in _COLUMNS])
    advance, close = progress_bar(total, "facts")
    try:
        for event in events:
            if not isinstance(event, BatchEvent):
                _show_reconsolidation(event, as_json=as_json)
                yield event
                continue
            advance(event.records)
            if not as_json:
                _print_event(event)
            _tell_untaken(event, event.batch_facts)
            if event.refused:
                say(f"batch {event.batch}: {event.refused}")
            yield event
    finally:
        close()


def _print_event(event: BatchEvent) -> None:
    gate = event.report.get("gate", {})
    cells: Mapping[str, object] = {
        "step": event.step,
        "records": event.records,
        "facts": event.facts,
        "taken": gate.get("taken"),
        "skipped": sum(event.skipped.values()),
        "conflicts": len(event.report.get("conflicts", ())),
        "at risk": _at_risk(event),
        "perplexity": gate.get("perplexity"),
        "seconds": round(event.seconds, 2),
        "weights": event.weights_digest[:12] if event.weights_digest else None,
    }
    print_row([(name, width, cells[name]) for name, width in _COLUMNS])


def _show_reconsolidation(event: ReconsolidationEvent, *, as_json: bool) -> None:
    """Its row has the step, and no batch: the figures are said beside it."""
    if not as_json:
        cells: Mapping[str, object] = {
            "step": event.step,
            "perplexity": event.report["guard"]["before" if event.refused else "after"]["perplexity"],
            "seconds": round(event.seconds, 2),
            "weights": event.weights_digest[:12],
        }
        print_row([(name, width, cells.get(name)) for name, width in _COLUMNS])
    if event.refused:
        tell_refusal(event.step, event.report)
    else:
        told = ", ".join(f"{name} {value}" for name, value in guarded(event.report).items())
        say(f"step {event.step} reconsolidates all live facts: {told}")


def _tell_untaken(event: BatchEvent, facts: Mapping[str, Fact]) -> None:
    for digest in event.untaken:
        fact = facts[digest]
        say(f"not taken: {cell(fact.prompt, 100)} → {cell(fact.target)} ({digest[:12]})")
    if unsaid := event.report.get("editor", {}).get("without_mention"):
        first = facts[unsaid[0]]
        said = f"{cell(first.prompt, 100)}, subject {cell(first.subject)}"
        say(f"{counted(len(unsaid), 'fact')} taught at the answer alone, for want of their subject in a prompt: {said}")


def _tell_conflicts(events: Sequence[BatchEvent], timeline: Timeline, *, as_json: bool, dry_run: bool) -> None:
    """In a dry run the conflicts are what one wants to see: a table of them."""
    found = [(event, conflict) for event in events for conflict in event.report.get("conflicts", ())]
    if not dry_run or as_json or not found:
        return
    old = timeline.facts_by_digest([conflict["old"] for _, conflict in found])
    rows = []
    for event, conflict in found:
        new, known = event.batch_facts[conflict["new"]], old[conflict["old"]]
        said = (f"{new.prompt} → {new.target}", f"{known.prompt} → {known.target}")
        rows.append((conflict["kind"], conflict["action"], conflict["probability"], *said))
    click.echo()
    print_table(("conflict", "action", "probability", "new", "in force"), rows)


def _at_risk(event: BatchEvent) -> float | None:
    """How many live facts the batch is expected to make the model forget."""
    forecast = event.report.get("forecast")
    return None if forecast is None else round(forecast["forgotten"], 2)


def _tell_forecasts(events: Sequence[BatchEvent], timeline: Timeline, *, as_json: bool) -> None:
    """In a dry run the facts most at risk are known: a table of them."""
    found = [(event, risk) for event in events for risk in event.report.get("forecast", {}).get("at_risk", ())]
    if as_json or not found:
        return
    facts = timeline.facts_by_digest([risk["fact"] for _, risk in found])
    rows = []
    for event, risk in found:
        fact = facts[risk["fact"]]
        rows.append((event.batch, round(risk["probability"], 3), risk["fact"][:12], f"{fact.prompt} → {fact.target}"))
    click.echo()
    print_table(("batch", "risk", "fact", "in force"), rows)


def _describe(event: BatchEvent) -> dict[str, Any]:
    return {
        "batch": event.batch,
        "step": event.step,
        "records": event.records,
        "facts": event.facts,
        "skipped": dict(event.skipped),
        "refused": event.refused,
        "weights_digest": event.weights_digest,
        "seconds": event.seconds,
        "gate": event.report.get("gate", {}),
        "conflicts": event.report.get("conflicts", []),
        "forecast": event.report.get("forecast"),
    }


def _summarise(done: Summary, read: ReadReport) -> dict[str, Any]:
    return {
        "batches": done.batches,
        "records": done.records,
        "steps": len(done.steps),
        "facts": done.facts,
        "untaken": done.untaken,
        "skipped": dict(done.skipped),
        "conflicts": dict(done.conflicts),
        "reconsolidations": done.reconsolidations,
        "refused": done.refused,
        "left_out": {skip.value: count for skip, count in read.skips.items()},
        "bad": read.bad + len(done.bad),
        "bad_records": [*read.skipped_bad, *done.bad],
        "seconds": done.seconds,
    }


def _report(
    shown: Sequence[BatchEvent | ReconsolidationEvent],
    summary: Mapping[str, Any],
    files: Sequence[str],
    head: int | None,
    *,
    as_json: bool,
    dry_run: bool,
) -> None:
    """What has been done, in the end; head: None where there is no store."""
    if as_json:
        from lifelong_edit.scheduler import BatchEvent

        batches = [_describe(event) for event in shown if isinstance(event, BatchEvent)]
        others = [asdict(event) for event in shown if not isinstance(event, BatchEvent)]
        print_json({"dry_run": dry_run, "batches": batches, "reconsolidations": others, "summary": summary})
    if summary["records"]:
        _tell(summary, head, dry_run)
    else:
        left = "no store was made" if head is None else f"the head is step {head}"
        say(f"found no facts to edit in {cell(', '.join(files), 200)}: nothing was done, and {left}")
    for reason, count in summary["left_out"].items():
        say(f"{count} left out: {reason}")
    if summary["bad"]:
        say(f"{counted(summary['bad'], 'bad record')} left out:")
        for place in summary["bad_records"]:
            say(f"  {one_line(place)}")


def _tell(summary: Mapping[str, Any], head: int | None, dry_run: bool) -> None:
    skipped = ", ".join(f"{count} {reason}" for reason, count in summary["skipped"].items())
    facts = counted(summary["facts"], "fact")
    taught = f"{facts} would be taught" if dry_run else f"{facts} in {counted(summary['steps'], 'step')}"
    again = f"; {counted(summary['reconsolidations'], 'reconsolidation')}" if summary["reconsolidations"] else ""
    again += f"; {counted(summary['refused'], 'reconsolidation')} refused" if summary["refused"] else ""
    say(
        f"{counted(summary['records'], 'record')}: {taught}, {summary['untaken']} not taken"
        f"{f'; skipped: {skipped}' if skipped else ''}{again}; the head is step {head}"
    )
    if summary["skipped"].get("rolled-back"):
        say("records known only from steps that were rolled back were skipped; --again applies them")
