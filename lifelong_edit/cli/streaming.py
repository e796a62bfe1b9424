"""What `stream` shows: a row for each batch as it is committed, and what has been done in the end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from lifelong_edit.cli.common import cell, counted, one_line, print_json, print_row, print_table, progress_bar, say
from lifelong_edit.cli.looking import guarded
from lifelong_edit.cli.reconsolidating import tell_refusal

if TYPE_CHECKING:
    from lifelong_edit.facts import Fact, ReadReport
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
    ("kept", 5),
)
_COLUMNS += (("perplexity", 10), ("seconds", 8), ("weights", 12))


def show_all(
    events: Iterator[BatchEvent | ReconsolidationEvent],
    timeline: Timeline,
    total: int | None,
    *,
    as_json: bool,
    dry_run: bool,
) -> list[BatchEvent | ReconsolidationEvent]:
    """Print each event as it comes, and in the end the tables of a dry run; the events where they are asked for."""
    from lifelong_edit.scheduler import BatchEvent

    kept = as_json or dry_run  # of a run without an end not every event can be kept
    shown = [event for event in _show_events(events, timeline, total, as_json=as_json) if kept]
    batches = [event for event in shown if isinstance(event, BatchEvent)]
    _tell_conflicts(batches, timeline, as_json=as_json, dry_run=dry_run)
    _tell_forecasts(batches, timeline, as_json=as_json)
    return shown


def _show_events(
    events: Iterator[BatchEvent | ReconsolidationEvent], timeline: Timeline, total: int | None, *, as_json: bool
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
            _tell_turned_down(event, timeline)
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
        "at risk": expected_forgotten(event),
        "kept": kept_share(event),
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
            "kept": kept_share(event),
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


def _tell_turned_down(event: BatchEvent, timeline: Timeline) -> None:
    """What was retracted, purged or dismissed does not come back without a word, nor stay away without one."""
    for skip in event.turned_down:
        fact, why = event.batch_facts[skip.fact], timeline.show(skip.by or 0).reason
        # What was purged is to leave no trace, in no output either.
        said = "the fact" if skip.reason == "purged" else f"{cell(fact.prompt, 100)} → {cell(fact.target)}"
        because = f": {one_line(why)}" if why else ""
        say(f"{said} ({skip.fact[:12]}) was {skip.reason} at step {skip.by}{because}; --again teaches it anyway")


def _tell_conflicts(events: Sequence[BatchEvent], timeline: Timeline, *, as_json: bool, dry_run: bool) -> None:
    """In a dry run the conflicts are what one wants to see: a table of them."""
    found = [(event, conflict) for event in events for conflict in event.report.get("conflicts", ())]
    if not dry_run or as_json or not found:
        return
    old = _facts([conflict["old"] for _, conflict in found], events, timeline)
    rows = []
    for event, conflict in found:
        new, known = event.batch_facts[conflict["new"]], old[conflict["old"]]
        said = (f"{new.prompt} → {new.target}", f"{known.prompt} → {known.target}")
        rows.append((conflict["kind"], conflict["action"], conflict["probability"], *said))
    click.echo()
    print_table(("conflict", "action", "probability", "new", "in force"), rows)


def _facts(digests: Iterable[str], events: Sequence[BatchEvent], timeline: Timeline) -> dict[str, Fact]:
    """Facts of the run or the store: those of the run are not stored where it is a dry one."""
    seen = {digest: fact for event in events for digest, fact in event.batch_facts.items()}
    stored = timeline.facts_by_digest(sorted(set(digests) - seen.keys()))
    return seen | stored


def expected_forgotten(event: BatchEvent) -> float | None:
    """How many live facts the batch is expected to make the model forget."""
    forecast = event.report.get("forecast")
    return None if forecast is None else round(forecast["forgotten"], 2)


def kept_share(event: BatchEvent | ReconsolidationEvent) -> float | None:
    """The share of earlier batches' facts that are still answered, of those that were asked."""
    return None if event.measured is None else event.measured.share("efficacy", earlier=True)


def _tell_forecasts(events: Sequence[BatchEvent], timeline: Timeline, *, as_json: bool) -> None:
    """In a dry run the facts most at risk are known: a table of them."""
    found = [(event, risk) for event in events for risk in event.report.get("forecast", {}).get("at_risk", ())]
    if as_json or not found:
        return
    facts = _facts([risk["fact"] for _, risk in found], events, timeline)
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
        "turned_down": [asdict(skip) for skip in event.turned_down],
        "refused": event.refused,
        "weights_digest": event.weights_digest,
        "seconds": event.seconds,
        "gate": event.report.get("gate", {}),
        "conflicts": event.report.get("conflicts", []),
        "forecast": event.report.get("forecast"),
        "kept": kept_share(event),
    }


def summarise(done: Summary, read: ReadReport) -> dict[str, Any]:
    """A run's summary as plain values."""
    return {
        "batches": done.batches,
        "records": done.records,
        "steps": len(done.steps),
        "facts": done.facts,
        "untaken": done.untaken,
        "skipped": dict(done.skipped),
        "conflicts": dict(done.conflicts),
        "turned_away": dict(done.turned_away),
        "reconsolidations": done.reconsolidations,
        "refused": done.refused,
        "left_out": {skip.value: count for skip, count in read.skips.items()},
        "unused": dict(read.unused),
        "bad": read.bad + len(done.bad),
        "bad_records": [*read.skipped_bad, *done.bad],
        "seconds": done.seconds,
    }


def report(
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
        others = [
            asdict(replace(event, measured=None)) | {"kept": kept_share(event)}
            for event in shown
            if not isinstance(event, BatchEvent)
        ]
        print_json({"dry_run": dry_run, "batches": batches, "reconsolidations": others, "summary": summary})
    if summary["records"]:
        _tell(summary, head, dry_run)
    else:
        left = "no store was made" if head is None else f"the head is step {head}"
        say(f"found no facts to edit in {cell(', '.join(files), 200)}: nothing was done, and {left}")
    for reason, count in summary["left_out"].items():
        say(f"{count} left out: {reason}")
    if summary["unused"]:
        from lifelong_edit.facts import describe_unused

        say(describe_unused(summary["unused"]))
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
    if summary["facts"] and summary["untaken"] == summary["facts"]:
        say(
            "none of them has taken: the rule with these settings does not suit this model; `train --choose` looks for "
            "others, of rules without a wrapper"
        )
    if summary["skipped"].get("rolled-back"):
        say("records known only from steps that were rolled back were skipped; --again applies them")
    if summary["skipped"].get("quarantined"):
        say("records in quarantine wait for review: `lifelong-edit conflicts --out FILE` writes them to a file")
    if lost := ", ".join(f"{n} {action}" for action, n in summary["turned_away"].items() if action != "quarantine"):
        say(f"turned away for facts in force: {lost}; `lifelong-edit conflicts` lists them and what decided")
    if summary["skipped"].get("never-quarantined"):
        say("records that were never in quarantine were skipped: --reviewed takes what `conflicts --out` wrote")
