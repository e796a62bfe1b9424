"""Commands that look after a store. They start without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lifelong_edit.cli.common import (
    counted,
    json_option,
    one_line,
    print_json,
    print_pairs,
    say,
    store_option,
    wait_option,
    writing_options,
)
from lifelong_edit.errors import StoreDamagedError, StoreKeyError

if TYPE_CHECKING:
    from lifelong_edit.stores import Report

_SHOWN = 10
"""Steps that a line of a table names, unless their ranges are fewer."""


@click.command()
@click.option("--repair", is_flag=True, help="Make again what follows from intact records; leave everything else.")
@click.option("--weights", is_flag=True, help="Also fold the ΔW of each state and hold it against the logged digest.")
@store_option
@wait_option
@json_option
def fsck(repair: bool, weights: bool, store: Path, wait: float, as_json: bool) -> None:
    """Examine a store from end to end: every page, record and digest, and which steps can still be reached.

    Names each damaged record, with the steps that need it, and each step whose weights cannot be had any more. Exit
    code 0: sound; 4: something is damaged. The store may be in use meanwhile, or may only be read.

    --repair mends, in one transaction, what a digest proves: HEAD, store.json, the head, counts of references, places,
    ΔW that is stored whole, records with one flipped bit, and the key index. What it replaces is kept in `repairs/`
    in the store. What cannot be mended stays as it is: `restore` a backup. An older copy of the database is nothing
    to mend either.

    Of an encrypted store whose key is not at hand, only pages and digests are examined: damaged records are named, what
    the others say stays unknown, and the exit code is 4.

    \b
    Examples:
      lifelong-edit fsck
      lifelong-edit fsck --json | jq '.findings[].record'
      lifelong-edit fsck --repair
    """
    import msgspec

    from lifelong_edit.stores import fsck as examine

    report = examine(store, repair=repair, timeout=wait)
    if weights and report.sound:
        _fold_all(store, report)
    if as_json:
        print_json({"sound": report.sound, **msgspec.to_builtins(report)})
    else:
        _print_report(report)
    if report.findings:
        found = counted(len(report.findings), "damaged record")
        advice = "restore a backup" if repair else "try `fsck --repair`, or restore a backup"
        raise StoreDamagedError(f"{store} has {found}, beginning with {report.findings[0].record}; {advice}")
    if report.locked is not None:
        raise StoreKeyError(f"every record is as it was written, but none was read: {report.locked}")


def _fold_all(store: Path, report: Report) -> None:
    """Rebuild the ΔW of every state, and add to the findings those that are not what was logged."""
    from lifelong_edit.cli.common import opened
    from lifelong_edit.stores import Finding

    with opened(store, read_only=True) as timeline:
        for step in report.reachable:
            if timeline.history().state_of(step) == step:
                try:
                    timeline.weights(step)
                except StoreDamagedError as error:
                    report.findings.append(Finding(record=f"ΔW of step {step}", problem=str(error), steps=[step]))


def _print_report(report: Report) -> None:
    told = [("store", report.store), ("head", report.head), ("schema", report.schema_version)]
    told += [("records", ", ".join(f"{name} {count}" for name, count in report.records.items()))]
    told += [("reachable", ranges(report.reachable))]
    told += [("dropped", ranges(report.dropped))] if report.dropped else []
    told += [("unreferenced", counted(len(report.unreferenced), "blob"))] if report.unreferenced else []
    told += [("sound", "yes" if report.sound else "NO" if report.findings else "unknown without the key")]
    print_pairs(told)
    for title, findings in (("mended", report.mended), ("damaged", report.findings)):
        if findings:
            click.echo(f"\n{title}:")
            for finding in findings:
                named = f" (of {counted(len(finding.steps), 'step')}: {ranges(finding.steps)})" if finding.steps else ""
                click.echo(f"  {one_line(finding.record)}{named}: {one_line(finding.problem)}")
    lost = {step: why for step, why in report.unreachable.items() if step not in report.dropped}
    if lost:
        click.echo("\nout of reach:")
        reasons: dict[str, list[int]] = {}
        for step, why in sorted(lost.items()):
            reasons.setdefault(why, []).append(step)
        for why, steps in reasons.items():
            click.echo(f"  {ranges(steps)}: {one_line(why)}")
    if report.mended:
        say(f"mended {counted(len(report.mended), 'record')}; what was replaced is kept in {report.store}/repairs")


def ranges(steps: Sequence[int]) -> str:
    """Numbers in ascending order, runs of them as `3-7`."""
    runs: list[list[int]] = []
    for step in steps:
        if runs and step == runs[-1][1] + 1:
            runs[-1][1] = step
        else:
            runs.append([step, step])
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in runs[:_SHOWN]]
    return ", ".join(shown) + (f" and {len(runs) - len(shown)} more" if len(runs) > len(shown) else "")


@click.command()
@click.argument("target", type=click.Path(path_type=Path))
@store_option
@json_option
def backup(target: Path, store: Path, as_json: bool) -> None:
    """Copy the store as it stands to the new folder TARGET, while others may go on writing to it.

    The copy is one consistent state. It is examined as by `fsck` and forced to disk before it gets its name; what was
    interrupted leaves no TARGET. A backup is a store: every command that reads works on it, and `restore` puts it back.

    \b
    Examples:
      lifelong-edit backup /backups/news-monday
      lifelong-edit log --store /backups/news-monday --last 1
    """
    import msgspec

    from lifelong_edit.stores import backup as copy

    found = msgspec.to_builtins(copy(store, target))
    if as_json:
        print_json(found)
    else:
        print_pairs([*found.items()])


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@writing_options
def compact(dry_run: bool, reason: str | None, author: str | None, store: Path, wait: float, as_json: bool) -> None:
    """Drop what no head, branch or tag reaches, and give its pages back to the file system.

    What goes are the payloads of steps: shifts, keys, states stored whole. Each step stays in the log with its facts,
    and `show` says that its weights were dropped; `rollback`, `ask --at` and the like refuse it by name. Give a `tag`
    to what has to stay, and make a `backup` first: nothing brings back what was dropped. A kept state is stored whole
    where that takes less than the shifts that lead to it.

    It is itself a step. The file is then written anew without its free pages, which needs room for it beside the store;
    readers at work meanwhile have to begin again.

    \b
    Examples:
      lifelong-edit compact --dry-run
      lifelong-edit compact --reason "end of the year"
    """
    import msgspec

    from lifelong_edit.timeline.keeping import compact as clear

    found = clear(store, dry_run=dry_run, reason=reason, author=author, timeout=wait)
    if as_json:
        print_json(msgspec.to_builtins(found))
        return
    names = ", ".join(f"{state} ({', '.join(named)})" for state, named in sorted(found.kept.items()))
    print_pairs(
        [
            ("kept", names),
            ("would_go" if dry_run else "out_of_reach", ranges(found.out_of_reach) or "none"),
            *([("stored_whole", ranges(found.wholes))] if found.wholes else []),
            ("blobs", found.blobs),
            ("bytes", found.bytes),
            ("free_pages", found.free),
            ("step", found.step),
            ("given_back", found.given_back),
        ]
    )
    if not dry_run and found.step is None:
        say("nothing was there to drop")


@click.command()
@click.argument("facts", nargs=-1, required=True, metavar="FACT...")
@writing_options
def purge(
    facts: tuple[str, ...], reason: str | None, author: str | None, wait: float, store: Path, as_json: bool
) -> None:
    """Drop the text of facts that are not in force, and all that was made with them, from the store.

    FACT is a digest, or its beginning, four letters at least: `facts --state all` lists them. One that is in force is
    taken back first, or by `retract --purge`. The text of the fact goes, and the shifts, keys and whole states of every
    step whose state held something of it, up to the next one that solved for all facts anew; those steps stay in the
    log as headers, and going back to them is refused by name. A tag or a branch that stands at such a state has to go
    first. The file is written anew and the old one filled with zeros. It is a step of the log, and cannot be undone.

    What is left is the digest of the fact, from which nobody can read it, but by which somebody who guesses it whole
    can tell that it was there; and what was taken from the store before: backups, exports, the files of facts.

    \b
    Examples:
      lifelong-edit facts --state retracted
      lifelong-edit purge 4be1f0a2 --reason "a person asked for it"
    """
    import msgspec

    from lifelong_edit.timeline.purging import purge as clear

    found = clear(store, facts, reason=reason, author=author, timeout=wait)
    if as_json:
        print_json(msgspec.to_builtins(found))
        return
    told = {"facts": ", ".join(digest[:12] for digest in found.facts), "out_of_reach": ranges(found.out_of_reach)}
    print_pairs([*(msgspec.to_builtins(found) | told).items()])


@click.command()
@click.argument("backup", type=click.Path(path_type=Path))
@click.option("--discard", is_flag=True, help="Do not keep the store that is replaced.")
@writing_options
def restore(
    backup: Path, discard: bool, reason: str | None, author: str | None, store: Path, wait: float, as_json: bool
) -> None:
    """Put BACKUP, an older state of the same store, in its place; or make a store of it where there is none.

    It is a step of the log that comes after the last one of BACKUP, so that the store is told from an older copy that
    came there by accident, which is refused. BACKUP is examined first and stays as it is. What is replaced, damaged or
    not, is kept beside the store as NAME.replaced-1 (or -2, …), unless --discard is given; it can itself be restored.

    \b
    Examples:
      lifelong-edit restore /backups/news-monday --reason "the disk of Tuesday"
      lifelong-edit restore /backups/news-monday --store rescued
    """
    import msgspec

    from lifelong_edit.timeline.keeping import restore as put_back

    found = put_back(backup, store, discard=discard, reason=reason, author=author, timeout=wait)
    if as_json:
        print_json(msgspec.to_builtins(found))
    else:
        print_pairs([*msgspec.to_builtins(found).items()])
