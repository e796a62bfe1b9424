"""Facts that met others: what `stream` does with them, conflicts, dismiss."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lifelong_edit.cli.common import (
    Command,
    at_option,
    counted,
    json_option,
    opened,
    print_json,
    print_table,
    say,
    store_option,
    writing_options,
)
from lifelong_edit.cli.looking import describe_fact, describe_step
from lifelong_edit.errors import UsageError
from lifelong_edit.policies import POLICIES

if TYPE_CHECKING:
    from lifelong_edit.timeline import Timeline

_CONFLICTS = click.option(
    "--conflicts",
    type=click.Choice(POLICIES),
    help="What a contradiction leads to in this run: the old fact is superseded, the new one rejected, both are kept, "
    "or the new one is put in quarantine until it is reviewed. Default: the store's setting `conflict_policy`.",
)
_REVIEWED = click.option(
    "--reviewed",
    is_flag=True,
    help="FILES come back from review (`conflicts --out`): edit those of their records that are in quarantine, "
    "superseding what they contradict, and skip all others.",
)


def handling_options(command: Command) -> Command:
    """The options of `stream` that say what becomes of facts which meet others."""
    return _CONFLICTS(_REVIEWED(command))


def handling(options: dict[str, Any], store: Path) -> dict[str, Any]:
    """Takes them out of the options of a command, for the scheduler.

    Raises UsageError where both are given, and where there is no store in which something could wait for review.
    """
    found = {name: options.pop(name) for name in ("conflicts", "reviewed")}
    if found["conflicts"] and found["reviewed"]:
        raise UsageError("found --conflicts with --reviewed, expected one of them: what was reviewed supersedes")
    if found["reviewed"] and not store.exists():
        raise UsageError(f"there is no store at {store}, and so nothing in quarantine; name the store with --store")
    return found


@click.command()
@click.option("--quarantined", is_flag=True, help="Only those whose new record is in quarantine.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the records in quarantine to a new file, for review: JSON lines that `stream --reviewed` takes.",
)
@at_option
@store_option
@json_option
def conflicts(quarantined: bool, out: Path | None, at: str | None, store: Path, as_json: bool) -> None:
    """New facts that met live ones, and what became of them.

    Of each the kind (duplicate, paraphrase, contradiction, or unrelated: near, but another relation), the probability
    that both ask for the same, the action, and what decided: the kind alone, a date, a source, the policy by its name,
    or a callable.

    To review what is in quarantine, write it to a file, delete the lines that are wrong (or correct them), and give the
    file to `stream --reviewed`. In each line `quarantined` has the live facts that the record met. What is left out of
    the file stays in quarantine; `dismiss` takes it out.

    \b
    Examples:
      lifelong-edit conflicts
      lifelong-edit conflicts --quarantined --json
      lifelong-edit conflicts --out review.jsonl
    """
    with opened(store, read_only=True) as timeline:
        if out is not None:
            _write_review(timeline, out, at, store)
        found = [c for c in timeline.conflicts(at=at) if c["pending"] or not (quarantined or out)]
        facts = timeline.facts_of(found)
    if as_json:
        known = {digest: describe_fact(fact) for digest, fact in facts.items()}
        print_json([c | {"new_fact": known.get(c["new"]), "old_fact": known[c["old"]]} for c in found])
        return
    said = {digest: f"{fact.prompt} → {fact.target}" for digest, fact in facts.items()}
    columns = ("step", "kind", "probability", "action", "by")
    rows = [(*(c[name] for name in columns), c["new"][:12], said.get(c["new"]), said[c["old"]]) for c in found]
    print_table((*columns, "fact", "new", "in force then"), rows)


def _write_review(timeline: Timeline, out: Path, at: str | None, store: Path) -> None:
    """A file that is there may hold somebody's half-done review: it is never replaced."""
    import msgspec

    from lifelong_edit.atomic import write_bytes_atomic

    if out.exists():
        raise UsageError(f"{out} is already there; choose another name, or delete it")
    entries = timeline.quarantined(at=at)
    lines = [msgspec.json.encode(entry.as_record()) + b"\n" for entry in entries]
    try:
        write_bytes_atomic(out, b"".join(lines))
    except OSError as error:
        raise UsageError(
            f"cannot write {out}: {error.strerror}; expected a file in a folder that can be written"
        ) from None
    say(
        f"{counted(len(entries), 'record')} in {out}; delete what is wrong, then: "
        f"lifelong-edit stream --reviewed {shlex.quote(str(out))} --store {shlex.quote(str(store))}"
    )


@click.command()
@click.argument("facts", nargs=-1, required=True, metavar="FACT...")
@writing_options
def dismiss(
    facts: Sequence[str], reason: str | None, author: str | None, wait: float, store: Path, as_json: bool
) -> None:
    """Take records out of quarantine without editing them, as one committed step.

    FACT is the digest of a record in quarantine, or its beginning, four letters at least: `conflicts --quarantined`
    lists them. As a step it can be rolled back.

    \b
    Examples:
      lifelong-edit conflicts --quarantined
      lifelong-edit dismiss 4be1f0a2 --reason "a hoax"
    """
    with opened(store, read_only=False, author=author, wait=wait) as timeline:
        step = timeline.dismiss(facts, reason=reason)
        known = timeline.facts_by_digest(step.reviewed)
    if as_json:
        print_json(describe_step(step) | {"dismissed": step.reviewed})
        return
    print_table(("dismissed", "prompt", "target"), [(d[:12], fact.prompt, fact.target) for d, fact in known.items()])
