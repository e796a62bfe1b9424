"""The command that takes facts back: retract."""

from __future__ import annotations

from pathlib import Path

import click

from lifelong_edit.cli.common import (
    author_option,
    cell,
    counted,
    device_option,
    json_option,
    opened,
    print_json,
    print_table,
    reason_option,
    say,
    store_option,
    wait_option,
)
from lifelong_edit.cli.looking import describe_step


@click.command()
@click.argument("facts", nargs=-1, required=True, metavar="FACT...")
@click.option("--revive", is_flag=True, help="Bring back what they had superseded.")
@reason_option
@author_option
@device_option
@wait_option
@store_option
@json_option
def retract(
    facts: tuple[str, ...],
    revive: bool,
    reason: str | None,
    author: str | None,
    device: str | None,
    wait: float,
    store: Path,
    as_json: bool,
) -> None:
    """Take facts back, however old, as one committed step.

    FACT is a digest of a fact in force, or as much of its beginning as names one: `facts` and `show` list them.

    The facts that remain are solved for again, from the base weights: the model is, to the last bit, that of a store
    that only ever had them. As a step it can be rolled back. What the model then says of the retracted facts is told
    beside what it says of unedited ones of the same relations: how many are answered as by the base model.

    \b
    Examples:
      lifelong-edit facts --subject Denmark
      lifelong-edit retract 4be1f0a2 --reason "source withdrawn"
      lifelong-edit retract 4be1f0a2 91c3d7 --revive
    """
    with opened(store, read_only=False, device=device, author=author, wait=wait) as timeline:
        step = timeline.retract(facts, revive=revive, reason=reason, say=say)
        known = timeline.facts_by_digest((*step.superseded, *step.added))
    if as_json:
        print_json(describe_step(step) | {"retracted": step.superseded, "revived": step.added, "report": step.report})
        return
    rows = [("retracted" if digest in step.superseded else "revived", digest[:12], f) for digest, f in known.items()]
    print_table(("", "fact", "prompt", "target"), [(how, digest, f.prompt, f.target) for how, digest, f in rows])
    for name, found in step.report["as_base"].items():
        if found["asked"]:
            say(f"{name}: {found['same']} of {counted(found['asked'], 'fact')} answered as by the base model")
    first = next(iter(known.values()))
    say(f"step {step.step} is without {cell(first.prompt, 60)}" + (" and others" if len(step.superseded) > 1 else ""))
