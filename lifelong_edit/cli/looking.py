"""Commands that only read the log: status, log, show, facts. They start without torch, but for `status --keys`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lifelong_edit.cli.common import (
    at_option,
    cell,
    device_option,
    json_option,
    one_line,
    opened,
    print_json,
    print_pairs,
    print_table,
    store_option,
)

if TYPE_CHECKING:
    from lifelong_edit.timeline_review import Which


@click.command()
@store_option
@json_option
@device_option
@click.option("--keys", is_flag=True, help="Measure how stale the stored keys are now; this loads the model.")
def status(store: Path, as_json: bool, device: str | None, keys: bool) -> None:
    """Where the timeline stands: head, number of steps, live facts, digests.

    `preserved` is how many prompts the store holds still, `forecast` the share of the live facts that the last edit was
    expected to make forgotten, `forecast_since` that of all edits since the last try to reconsolidate.

    Below it, how far the stored keys of live facts have drifted from the model's present ones, by module and by `age`,
    the number of edits since they were traced: `median` and `p90` are relative distances, 0 for keys as good as new. As
    logged by the last reconsolidation, at the state before it, or, with --keys, now. A reconsolidation traces them
    anew.

    \b
    Examples:
      lifelong-edit status
      lifelong-edit status --json | jq .weights_digest
      lifelong-edit status --keys
    """
    with opened(store, read_only=True, device=device) as timeline:
        found = timeline.status() | ({"staleness": timeline.staleness()} if keys else {})
    if as_json:
        print_json(found)
        return
    stale = found.pop("staleness")
    print_status(found)
    if stale is not None:
        print_staleness(stale)


def print_status(found: Mapping[str, Any]) -> None:
    """What `Timeline.status` found, one pair a line; of the settings those that are not the defaults."""
    from lifelong_edit.settings import Settings

    default = Settings()
    given = [(n, tuple(v) if isinstance(v, list) else v) for n, v in found["settings"].items() if n != "modules"]
    changed = [f"{n}={','.join(v) if isinstance(v, tuple) else v}" for n, v in given if v != getattr(default, n)]
    told = {**found, "modules": ", ".join(found["modules"]), "settings": " ".join(changed) or "defaults"}
    told["bytes"] = f"{found['bytes']} ({found['bytes'] / 2**20:.1f} MiB)"
    print_pairs([(name, value) for name, value in told.items() if not isinstance(value, dict | list)])


@click.command()
@store_option
@json_option
@click.option("--last", type=click.IntRange(min=1), metavar="N", help="Only the last N steps.")
def log(store: Path, as_json: bool, last: int | None) -> None:
    """The steps that were committed, oldest first.

    \b
    Examples:
      lifelong-edit log
      lifelong-edit log --last 5 --json
    """
    with opened(store, read_only=True) as timeline:
        steps = [describe_step(record) for record in timeline.log()]
    steps = steps[-last:] if last else steps
    if as_json:
        print_json(steps)
        return
    columns: tuple[str, ...] = ("step", "kind", "how", "parent", "facts", "superseded", "taken", "perplexity")
    columns += ("weights_digest", "time", "reason")
    print_table(columns, [[_short(name, step.get(name)) for name in columns] for step in steps])


@click.command()
@click.argument("step", type=click.IntRange(min=0))
@store_option
@json_option
def show(step: int, store: Path, as_json: bool) -> None:
    """One step: what it taught and replaced, what the gate said, what it took.

    \b
    Examples:
      lifelong-edit show 3
      lifelong-edit show 3 --json | jq .report
    """
    from lifelong_edit.facts import Fact

    with opened(store, read_only=True) as timeline:
        record = timeline.show(step)
        facts: dict[str, Fact] = timeline.facts_by_digest((*record.added, *record.superseded))
    found = describe_step(record) | {
        "added": [describe_fact(facts[digest]) for digest in record.added],
        "superseded_facts": [describe_fact(facts[digest]) for digest in record.superseded],
        "report": record.report,
        "provenance": record.provenance,
    }
    if as_json:
        print_json(found)
        return
    told = {"passes": record.report["editor"]["passes"], **guarded(record.report)} if "guard" in record.report else {}
    if objections := record.report.get("objections"):
        told["refused" if record.kind == "refused" else "unguarded"] = "; ".join(objections)
    print_pairs([(name, value) for name, value in (found | told).items() if not isinstance(value, dict | list)])
    if "staleness" in record.report:
        print_staleness(record.report["staleness"])
    if not facts:
        return
    untaken = set(record.report.get("gate", {}).get("untaken", ()))
    rows = [(_became(record, digest, untaken), digest[:12], fact.prompt, fact.target) for digest, fact in facts.items()]
    click.echo()
    print_table(("", "fact", "prompt", "target"), rows)


def _became(record: Any, digest: str, untaken: set[str]) -> str:
    """What a step did with a fact, in a word or two."""
    if digest in record.superseded:
        return "retracted" if record.kind == "retract" else "replaced"
    if record.kind == "retract":
        return "revived"
    alone = digest in record.report.get("editor", {}).get("without_mention", ())
    return ("NOT TAKEN" if digest in untaken else "taken") + (", at the answer alone" if alone else "")


@click.command()
@store_option
@json_option
@at_option
@click.option(
    "--state",
    type=click.Choice(["live", "superseded", "retracted", "quarantined", "all"]),
    default="live",
    show_default=True,
    help="Facts in force, those that others took the place of, those that were taken back, those in quarantine, or all "
    "that ever were in force.",
)
@click.option(
    "--subject", default="", metavar="TEXT", help="Only facts whose subject holds this text (case does not matter)."
)
def facts(store: Path, as_json: bool, at: int | None, state: Which, subject: str) -> None:
    """The facts in force (or not), at the head or as of a step.

    With --json each is its native record, with its digest.

    \b
    Examples:
      lifelong-edit facts
      lifelong-edit facts --at 3 --subject france --json
    """
    with opened(store, read_only=True) as timeline:
        found = [f for f in timeline.facts(state, at=at) if subject.casefold() in f.subject.casefold()]
    if as_json:
        print_json([describe_fact(fact) for fact in found])
        return
    print_table(
        ("fact", "subject", "prompt", "target"),
        [(fact.digest[:12], fact.subject, fact.prompt, fact.target) for fact in found],
    )


def describe_step(record: Any) -> dict[str, Any]:
    """A step as `log --json` shows it."""
    gate = record.report.get("gate", {})
    guard = record.report.get("guard", {}).get("before" if record.kind == "refused" else "after", {})
    return {
        "step": record.step,
        "kind": record.kind,
        "how": _how(record),
        "parent": record.parent,
        "facts": len(record.added),
        "superseded": len(record.superseded),
        "skipped": len(record.skipped),
        "taken": gate.get("taken"),
        "perplexity": gate.get("perplexity", guard.get("perplexity", record.provenance.get("perplexity"))),
        "weights_digest": record.weights_digest,
        "live_digest": record.live_digest,
        "time": record.time,
        "reason": record.reason,
    }


def _how(record: Any) -> str | None:
    """Where a reconsolidation began, and whether it was committed against its guard."""
    if "start" not in record.report:
        return None
    start = record.report["start"]
    against = record.kind == "reconsolidate" and record.report["objections"]
    return ("canonical" if start == 0 else f"warm from {start:g}") + (", unguarded" if against else "")


def guarded(report: Mapping[str, Any]) -> dict[str, str]:
    """What the guard of a reconsolidation measured, before → after."""
    before, after = report["guard"]["before"], report["guard"]["after"]
    names = ("retention", "locality", "perplexity")
    return {
        name: "not measured" if before[name] is None else f"{cell(before[name])} → {cell(after[name])}"
        for name in names
    }


def print_staleness(found: Mapping[str, Any]) -> None:
    """How stale keys are: relative drift by module and age, the number of edits since the keys were traced."""
    click.echo(f"\nkeys at step {found['state']}: {found['sampled']} of {found['live']} live facts")
    columns = ("module", "age", "facts", "median", "p90")
    rows = [{**row, "age": _span(row["ages"])} for row in found["drift"]]
    print_table(columns, [[row[name] for name in columns] for row in rows])


def _span(ages: Sequence[int] | None) -> str:
    if ages is None:
        return "all"
    first, last = ages
    return str(first) if first == last else f"{first} to {last}"


def describe_fact(fact: Any) -> dict[str, Any]:
    """A fact's native record with its digest."""
    import msgspec

    return {"digest": fact.digest, **msgspec.to_builtins(fact)}


def _short(name: str, value: Any) -> object:
    if name.endswith("digest"):
        return str(value)[:12]
    if name == "time":
        return str(value)[:19].replace("T", " ")
    return one_line(value) if isinstance(value, str) else value
