"""Commands that only read the log: status, log, show, facts. They start without torch, but for `status --keys`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lifelong_edit.cli.checking import check_files
from lifelong_edit.cli.common import (
    at_option,
    cell,
    json_option,
    loading_options,
    map_option,
    one_line,
    opened,
    print_json,
    print_pairs,
    print_table,
    reader_of,
    relations_option,
    store_option,
)
from lifelong_edit.errors import UsageError

if TYPE_CHECKING:
    from lifelong_edit.facts import Fact

STATES: tuple[Which, ...] = ("live", "superseded", "retracted")

if TYPE_CHECKING:
    from lifelong_edit.timeline.review import Which


@click.command()
@store_option
@json_option
@loading_options
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
    from lifelong_edit.editors.registry import rule_of

    default = rule_of(found["editor"]).settings()
    given = [
        (n, tuple(v) if isinstance(v, list) else v)
        for n, v in found["settings"].items()
        if n not in ("modules", "editor")
    ]
    changed = [f"{n}={','.join(v) if isinstance(v, tuple) else v}" for n, v in given if v != getattr(default, n)]
    told = {**found, "modules": ", ".join(found["modules"]), "settings": " ".join(changed) or "defaults"}
    told["bytes"] = f"{found['bytes']} ({found['bytes'] / 2**20:.1f} MiB)"
    print_pairs([(name, value) for name, value in told.items() if not isinstance(value, dict | list)])


@click.command()
@store_option
@json_option
@click.option("--last", type=click.IntRange(min=1), metavar="N", help="Only the last N steps.")
def log(store: Path, as_json: bool, last: int | None) -> None:
    """The steps that were committed, oldest first, with author, reason, and the sources of their facts.

    \b
    Examples:
      lifelong-edit log
      lifelong-edit log --last 5 --json
    """
    from lifelong_edit.timeline.names import MAIN

    with opened(store, read_only=True) as timeline:
        history, records = timeline.history(), timeline.log()
        records = records[-last:] if last else records
        facts = timeline.facts_by_digest([digest for record in records for digest in record.added])
    steps = []
    for record in records:
        sources = count_sources(facts[digest] for digest in record.added)
        where = {"branch": history.made_on(record.step), "dated_before": history.dated_back(record.step)}
        steps.append(describe_step(record) | where | {"sources": sources})
    if as_json:
        print_json(steps)
        return
    columns: tuple[str, ...] = ("step", "kind", "how", "parent", "facts", "superseded", "taken", "perplexity")
    columns += ("weights_digest", "time", "author")
    # Most stores have one branch, and many facts have no source.
    columns += ("branch",) if any(step["branch"] != MAIN for step in steps) else ()
    # By a clock that was set back.
    columns += ("dated_before",) if any(step["dated_before"] is not None for step in steps) else ()
    columns += ("sources",) if any(step["sources"] for step in steps) else ()
    columns += ("reason",)
    print_table(columns, [[_short(name, step.get(name)) for name in columns] for step in steps])


@click.command()
@click.argument("step")
@store_option
@json_option
def show(step: str, store: Path, as_json: bool) -> None:
    """One step: what it taught and replaced, what the gate said, what it took, where it comes from.

    STEP is a number, a tag (the step whose state it names) or a branch (its tip). `bytes` is what the step added to the
    store: facts, keys, shifts, and now and then a state whole.

    \b
    Examples:
      lifelong-edit show 3
      lifelong-edit show release-1
      lifelong-edit show 3 --json | jq .report
    """
    with opened(store, read_only=True) as timeline:
        record = timeline.show(step)
        history = timeline.history()
        branch, dropped = history.made_on(record.step), history.dropped_by(record.step)
        dated_before = history.dated_back(record.step)
        added_bytes = timeline.bytes_of(record.step)
        facts = timeline.facts_by_digest((*record.added, *record.superseded))
        report = record.report
        met = report.get("conflicts", ())
        told_of = timeline.facts_of({"by": None} | c for c in met)
        told_of |= timeline.facts_by_digest(record.reviewed)
    found = describe_step(record) | {
        "branch": branch,
        "dated_before": dated_before,
        "weights_dropped_by": None if dropped is None else dropped.step,
        "bytes": added_bytes,
        "sources": count_sources(facts[digest] for digest in record.added),
        "added": [describe_fact(facts[digest]) for digest in record.added],
        "superseded_facts": [describe_fact(facts[digest]) for digest in record.superseded],
        "report": report,
        "provenance": record.provenance,
    }
    if as_json:
        print_json(found)
        return
    told = {**passes_of(report), **guarded(report)} if "guard" in report else {}
    if rounding := report.get("editor", {}).get("rounding"):
        told["in 16 bits"] = f"off by at most {max(rounding.values()):.1e} of a matrix' shift"
    if objections := record.objections:
        told["refused" if record.kind == "refused" else "unguarded"] = "; ".join(objections)
    absent = {name for name in ("name", "named", "dated_before", "weights_dropped_by") if found[name] is None}
    pairs = [(name, value) for name, value in (found | told).items() if name not in absent]
    plain = [(name, value) for name, value in pairs if not isinstance(value, dict | list)]
    print_pairs([*plain, *_origin(record.provenance)])
    if "staleness" in report:
        print_staleness(report["staleness"])
    if met:
        click.echo()
        columns = ("kind", "probability", "action", "by")
        table = [(*(c.get(name) for name in columns), _said(told_of, c["new"]), _said(told_of, c["old"])) for c in met]
        print_table((*columns, "new", "in force then"), table)
    if reviewed := record.reviewed:
        click.echo()
        print_table(("out of quarantine", "record"), [(digest[:12], _said(told_of, digest)) for digest in reviewed])
    if not facts:
        return
    untaken = set(report.get("gate", {}).get("untaken", ()))
    became = {digest: _became(record, digest, untaken) for digest in facts}
    click.echo()
    _print_facts(list(facts.values()), became)


def _said(facts: Mapping[str, Fact], digest: str) -> str | None:
    """A fact in a cell."""
    return f"{facts[digest].prompt} → {facts[digest].target}" if digest in facts else None


def _became(record: Any, digest: str, untaken: set[str]) -> str:
    """What a step did with a fact, in a word or two."""
    if digest in record.superseded:
        return "retracted" if record.kind == "retract" else "replaced"
    if record.kind == "retract":
        return "revived"
    alone = digest in record.report.get("editor", {}).get("without_mention", ())
    return ("NOT TAKEN" if digest in untaken else "taken") + (", at the answer alone" if alone else "")


def _origin(provenance: Mapping[str, Any]) -> list[tuple[str, object]]:
    """Where a step comes from, as pairs to print: what made it, from what, in which environment."""
    from lifelong_edit.timeline.states import LIBRARIES

    found: Mapping[str, Any] = provenance.get("environment", {})
    libraries = [f"{name} {value}" for name, value in found.items() if name in LIBRARIES and name != "lifelong-edit"]
    machine = [f"{name} {value}" for name, value in found.items() if name not in LIBRARIES]
    return [
        ("made_by", f"lifelong-edit {provenance.get('code')}"),
        ("base_fingerprint", provenance.get("fingerprint")),
        *((name, provenance.get(name)) for name in ("hypernetwork", "settings_digest", "seed")),
        ("libraries", ", ".join(libraries) or None),
        ("environment", ", ".join(machine) or None),
    ]


def _print_facts(facts: Sequence[Fact], became: Mapping[str, str]) -> None:
    """A table of facts; columns that few facts fill stand there where one does. became: what of each, by digest."""
    further = [name for name in ("date", "source", "author") if any(getattr(fact, name) for fact in facts)]
    first = [became[fact.digest] for fact in facts] if any(became.values()) else None
    rows = [
        [fact.digest[:12], fact.subject, fact.prompt, fact.target, *(getattr(fact, name) for name in further)]
        for fact in facts
    ]
    if first is None:
        print_table(("fact", "subject", "prompt", "target", *further), rows)
    else:
        told = [[how, *row] for how, row in zip(first, rows, strict=True)]
        print_table(("", "fact", "subject", "prompt", "target", *further), told)


@click.command()
@store_option
@json_option
@at_option
@click.option(
    "--state",
    type=click.Choice(["live", "superseded", "retracted", "quarantined", "all"]),
    help="Facts in force (the default), those that others took the place of, those that were taken back, those in "
    "quarantine, or all that ever were in force.",
)
@click.option(
    "--where",
    "conditions",
    multiple=True,
    metavar="CONDITION",
    help="Only facts of which this holds: FIELD=VALUE or FIELD~TEXT; if given several times, all have to hold.",
)
@click.option("--subject", metavar="TEXT", help="The same as --where subject~TEXT.")
@click.option("--check", is_flag=True, help="What FILES hold, before any store is touched: shapes, facts, gaps.")
@map_option
@relations_option
@click.argument("files", nargs=-1)
def facts(
    files: tuple[str, ...],
    check: bool,
    mapping: tuple[str, ...],
    relations: Path | None,
    store: Path,
    as_json: bool,
    at: str | None,
    state: Which | None,
    conditions: tuple[str, ...],
    subject: str | None,
) -> None:
    """The facts in force (or not), at the head or as of a step.

    With --json each is its native record, with its digest, and with its `state` where facts of several are listed;
    `stream` takes this list as it is: facts in force come back to the byte, the others stay out.

    With --check FILES no store is opened: it shows which shapes the records of the files have, the first of them as
    facts, what facts may have and these have not, and which fields are not used. Exit code 3 if a record is bad.

    \b
    A condition is about one of
      subject, prompt, target, relation, id, source, author, date, state
                    FIELD=VALUE: it is VALUE; FIELD~TEXT: it holds TEXT; FIELD=: it is not given.
                    Case does not matter. A condition on the state replaces --state
      since, until  the date is not before, not after: since=2024-01-01, until=2024-12-31T18:00

    \b
    Examples:
      lifelong-edit facts
      lifelong-edit facts --at 3 --where subject=France --json
      lifelong-edit facts --where source~gazette --where since=2031-01-01
      lifelong-edit facts --where target=euro --where state=superseded
      lifelong-edit facts --check faq.csv --map prompt=question,target=answer
    """
    from lifelong_edit.facts.where import STATE, all_hold, parse_conditions

    if check:
        check_files(files, reader_of(mapping, relations), as_json=as_json)
        return
    if files or mapping or relations is not None:
        raise UsageError("found files, --map or --relations without --check, expected a look at a store; add --check")
    asked = parse_conditions([*conditions, *([f"subject~{subject}"] if subject else ())])
    about_state = any(condition.field == STATE for condition in asked)
    for condition in asked:
        if condition.field == STATE and not condition.contains and condition.value.casefold() not in STATES:
            raise UsageError(f"found state={condition.value}, expected one of {', '.join(STATES)}; or use --state")
    if about_state and state is not None:
        raise UsageError("found --state and a condition on the state together, expected one of them; leave one out")
    wanted: Sequence[Which] = STATES if about_state or state == "all" else (state or "live",)
    with opened(store, read_only=True) as timeline:
        found = [(fact, now) for now in wanted for fact in timeline.facts(now, at=at) if all_hold(asked, fact, now)]
    if as_json:
        print_json([describe_fact(fact) | ({"state": now} if len(wanted) > 1 else {}) for fact, now in found])
        return
    _print_facts([fact for fact, _ in found], {fact.digest: now if len(wanted) > 1 else "" for fact, now in found})


def describe_step(record: Any) -> dict[str, Any]:
    """A step as `log --json` shows it."""
    report = record.report
    gate = report.get("gate", {})
    guard = report.get("guard", {}).get("before" if record.kind == "refused" else "after", {})
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
        "author": record.author,
        "name": record.name,
        "named": record.named,
        "reason": record.reason,
    }


def _decided(record: Any) -> str:
    """What became of the records of a step that edited nothing, counted."""
    said = Counter(met.action for met in {met.new: met for met in record.conflicts}.values())
    dismissed = len(record.reviewed)
    return ", ".join([*(f"{n} {action}" for action, n in said.items()), *([f"{dismissed} reviewed"] * bool(dismissed))])


def _how(record: Any) -> str | None:
    """Where a reconsolidation began, and whether it was committed against its guard; which name a step is about."""
    if record.name is not None:
        if record.kind == "switch":
            return f"to {record.name}"
        return f"{record.name} deleted" if record.named is None else f"{record.name} at {record.named}"
    if record.kind == "rollback":
        return f"to {record.parent}"
    if record.kind == "decide":
        return _decided(record)
    if record.kind == "compact":
        return f"{len(record.out_of_reach)} states dropped"
    if record.kind == "purge":
        return f"{len(record.purged)} facts dropped, {len(record.out_of_reach)} states"
    if record.kind == "restore":
        return f"of a backup of step {record.backup_head}"
    if record.start is None:
        return None
    start, against = record.start, record.kind == "reconsolidate" and record.objections
    return ("canonical" if start == 0 else f"warm from {start:g}") + (", unguarded" if against else "")


def passes_of(report: Mapping[str, Any]) -> dict[str, Any]:
    """How many passes a rule took over all facts; nothing of a rule that takes none."""
    return {name: value for name, value in report["editor"].items() if name == "passes"}


def guarded(report: Mapping[str, Any]) -> dict[str, str]:
    """What the guard of a reconsolidation measured, before → after."""
    before, after = report["guard"]["before"], report["guard"]["after"]
    names = ("retention", "locality", "perplexity")
    return {
        name: "not measured" if after[name] is None else f"{cell(before[name])} → {cell(after[name])}" for name in names
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


def day_and_time(time: str) -> str:
    """A step's time as tables show it, UTC."""
    return time[:19].replace("T", " ")


def count_sources(facts: Iterable[Fact]) -> dict[str, int]:
    """How many of the facts come from each source, the most frequent first; those without a source are left out."""
    return dict(Counter(fact.source for fact in facts if fact.source).most_common())


def in_short(sources: Mapping[str, int]) -> str:
    """The first source with its number of facts, and how many further sources there are."""
    name, count = next(iter(sources.items()))
    more = f" and {len(sources) - 1} more" if len(sources) > 1 else ""
    return f"{one_line(name)[:30]} ({count}){more}"


def _short(name: str, value: Any) -> object:
    if name.endswith("digest"):
        return str(value)[:12]
    if name == "time":
        return day_and_time(value)
    if name == "sources":
        return in_short(value) if value else None
    return one_line(value) if isinstance(value, str) else value
