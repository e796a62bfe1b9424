"""The command that takes facts back: retract."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lifelong_edit.cli.common import (
    author_option,
    cell,
    counted,
    json_option,
    loading_options,
    opened,
    print_json,
    print_table,
    reason_option,
    say,
    store_option,
    wait_option,
)
from lifelong_edit.cli.keeping import ranges
from lifelong_edit.cli.looking import describe_step
from lifelong_edit.cli.measuring import measure_after

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lifelong_edit.timeline import Timeline


@click.command()
@click.argument("facts", nargs=-1, required=True, metavar="FACT...")
@click.option("--revive", is_flag=True, help="Bring back what they had superseded.")
@click.option(
    "--purge",
    is_flag=True,
    help="Then drop their text, and what every state that held something of them needs; see `purge`.",
)
@reason_option
@author_option
@loading_options
@wait_option
@store_option
@json_option
def retract(
    facts: tuple[str, ...],
    revive: bool,
    purge: bool,
    reason: str | None,
    author: str | None,
    device: str | None,
    wait: float,
    store: Path,
    as_json: bool,
) -> None:
    """Take facts back, however old, as one committed step.

    FACT is a digest of a fact in force, or its beginning, four letters at least: `facts` and `show` list them. It may
    be one that was superseded: it does not come back then, whatever --revive brings back later.

    The facts that remain are solved for again, from the base weights: the model is, to the last bit, that of a store
    that only ever had them. As a step it can be rolled back. What the model then says of the retracted facts is told
    beside what it says of unedited ones of the same relations: how many are answered as by the base model.

    \b
    Examples:
      lifelong-edit facts --subject Denmark
      lifelong-edit retract 4be1f0a2 --reason "source withdrawn"
      lifelong-edit retract 4be1f0a2 91c3d7 --revive
      lifelong-edit retract 4be1f0a2 --purge --reason "a person asked for it"
    """
    with opened(store, read_only=False, device=device, author=author, wait=wait) as timeline:
        if purge:
            _require_purgeable(timeline, facts)
        step = timeline.retract(facts, revive=revive, reason=reason, say=say)
        known = timeline.facts_by_digest((*step.superseded, *step.added))
        if timeline.history().live(step.step):
            measure_after(timeline, step.step)
    gone = _purge(store, step.superseded, reason, author, wait) if purge else None
    if as_json:
        told = {"retracted": step.superseded, "revived": step.added, "purged": gone, "report": step.report}
        print_json(describe_step(step) | told)
        return
    rows = [("retracted" if digest in step.superseded else "revived", digest[:12], f) for digest, f in known.items()]
    print_table(("", "fact", "prompt", "target"), [(how, digest, f.prompt, f.target) for how, digest, f in rows])
    for name, found in step.as_base.items():
        if found.asked:
            say(f"{name}: {found.same} of {counted(found.asked, 'fact')} answered as by the base model")
    first = next(iter(known.values()))
    if gone is not None:
        say(f"step {gone['step']} dropped {counted(len(gone['facts']), 'fact')}, and {ranges(gone['out_of_reach'])}")
    say(f"step {step.step} is without {cell(first.prompt, 60)}" + (" and others" if len(step.superseded) > 1 else ""))


def _require_purgeable(timeline: Timeline, names: Sequence[str]) -> None:
    """Before anything is solved for: no tag and no other branch may stand where something of the facts is held."""
    from lifelong_edit.timeline.purging import require_unheld

    history = timeline.history()
    digests = [history.retractable(timeline.head, name) for name in names]
    require_unheld(history, history.holding(digests), without_head=True)


def _purge(store: Path, facts: Sequence[str], reason: str | None, author: str | None, wait: float) -> dict[str, Any]:
    import msgspec

    from lifelong_edit.timeline.purging import purge

    found: dict[str, Any] = msgspec.to_builtins(purge(store, facts, reason=reason, author=author, timeout=wait))
    return found
