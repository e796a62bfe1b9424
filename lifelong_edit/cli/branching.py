"""Commands that go to states and name them: rollback, tag, branch, switch. They start without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from lifelong_edit.cli.common import (
    opened,
    print_json,
    print_table,
    say,
    writing_options,
)
from lifelong_edit.cli.looking import day_and_time, describe_step
from lifelong_edit.errors import UsageError


@click.command()
@click.argument("step")
@writing_options
def rollback(step: str, reason: str | None, author: str | None, wait: float, store: Path, as_json: bool) -> None:
    """Go back to the state after STEP, a number, tag or branch; 0 is the base model.

    The weights are those of that step, equal by digest. Going back is itself a step of the log: nothing is lost, and
    rolling back to the step before it undoes it. It moves the current branch, and no other.

    \b
    Examples:
      lifelong-edit rollback 3
      lifelong-edit rollback release-2
      lifelong-edit rollback 0 --reason "wrong source"
    """
    with opened(store, read_only=False, author=author, wait=wait) as timeline:
        _print_step(timeline.rollback(step, reason=reason), as_json=as_json)


@click.command()
@click.argument("name", required=False)
@click.argument("step", required=False)
@click.option("--delete", is_flag=True, help="Take the tag NAME away. The step that it names stays in the log.")
@writing_options
def tag(
    name: str | None,
    step: str | None,
    delete: bool,
    reason: str | None,
    author: str | None,
    wait: float,
    store: Path,
    as_json: bool,
) -> None:
    """Give the state after STEP (default: the head) a name that never moves; without NAME, list the tags.

    A name can stand wherever a STEP is asked for. A tag never moves, and what it names stays within reach whatever is
    cleared away. Names are letters, digits, '.', '-', '_' and '/', no number and not `head`, which is the last step.

    \b
    Examples:
      lifelong-edit tag release-1
      lifelong-edit tag before-the-merger 3 --reason "for the audit"
      lifelong-edit ask "The capital of France is" --at release-1
      lifelong-edit tag release-1 --delete
    """
    _refuse_misplaced(name, step, delete)
    if name is None:
        with opened(store, read_only=True) as timeline:
            found = [vars(tag) for tag in timeline.tags()]
        _print_names(("name", "step", "live_facts", "time"), found, as_json=as_json)
        return
    with opened(store, read_only=False, author=author, wait=wait) as timeline:
        before = timeline.head
        record = (
            timeline.delete_tag(name, reason=reason)
            if delete
            else timeline.tag(name, "head" if step is None else step, reason=reason)
        )
        if record.step == before:
            say(f"the tag {name} is there already, at step {timeline.show(name).step}: nothing was done")
            return
        _print_step(record, as_json=as_json)


@click.command()
@click.argument("name", required=False)
@click.argument("step", required=False)
@click.option("--delete", is_flag=True, help="Take the branch NAME away. Its steps stay in the log.")
@writing_options
def branch(
    name: str | None,
    step: str | None,
    delete: bool,
    reason: str | None,
    author: str | None,
    wait: float,
    store: Path,
    as_json: bool,
) -> None:
    """Begin a branch at the state after STEP (default: the head) and go there; without NAME, list the branches.

    A branch is a head with a name: what is streamed, retracted or rolled back moves the current one alone. Every store
    begins with `main`. A file that another branch was given can be streamed here as if it were new, unless it is in the
    state that the branch began at.

    The list has for each branch its `tip`, the last step that moved it, and its `state`, the step whose state it is.

    \b
    Examples:
      lifelong-edit branch trial 3
      lifelong-edit stream week.jsonl
      lifelong-edit diff main trial
      lifelong-edit switch main
      lifelong-edit branch trial --delete
    """
    _refuse_misplaced(name, step, delete)
    if name is None:
        with opened(store, read_only=True) as timeline:
            found = [vars(branch) for branch in timeline.branches()]
        _print_names(("current", "name", "tip", "state", "live_facts", "time"), found, as_json=as_json)
        return
    with opened(store, read_only=False, author=author, wait=wait) as timeline:
        record = (
            timeline.delete_branch(name, reason=reason)
            if delete
            else timeline.branch(name, "head" if step is None else step, reason=reason)
        )
        _print_step(record, as_json=as_json)


@click.command()
@click.argument("name")
@writing_options
def switch(name: str, reason: str | None, author: str | None, wait: float, store: Path, as_json: bool) -> None:
    """Go to the tip of the branch NAME; further steps move it.

    \b
    Examples:
      lifelong-edit switch main
      lifelong-edit switch trial --reason "the other order"
    """
    with opened(store, read_only=False, author=author, wait=wait) as timeline:
        before = timeline.head
        record = timeline.switch(name, reason=reason)
        if record.step == before:
            say(f"{name} is the current branch already: nothing was done")
            return
        _print_step(record, as_json=as_json)


def _refuse_misplaced(name: str | None, step: str | None, delete: bool) -> None:
    if delete and (name is None or step is not None):
        found = "no name" if name is None else f"the step {step!r}"
        raise UsageError(f"found --delete with {found}, expected one name alone; say which one to take away")


def _print_step(record: Any, *, as_json: bool) -> None:
    found = describe_step(record)
    if as_json:
        print_json(found)
        return
    columns = ("step", "kind", "how", "parent", "weights_digest")
    print_table(columns, [[found[name] for name in columns]])


def _print_names(columns: Sequence[str], found: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    shown = [{**row, "time": day_and_time(row["time"]), "current": "*" if row.get("current") else ""} for row in found]
    print_table(columns, [[row[name] for name in columns] for row in shown])
