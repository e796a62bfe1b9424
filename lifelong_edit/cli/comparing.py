"""The command that compares two states: diff. It loads the model only to ask it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lifelong_edit.cli.common import (
    counted,
    json_option,
    loading_options,
    one_line,
    opened,
    print_json,
    print_table,
    say,
    store_option,
)
from lifelong_edit.errors import UsageError

if TYPE_CHECKING:
    from lifelong_edit.facts import Fact
    from lifelong_edit.timeline.diff import Answer, Diff


@click.command()
@click.argument("one", metavar="STEP")
@click.argument("other", metavar="[STEP]", default="head")
@click.option(
    "--answers", is_flag=True, help="Also ask the model at both, and show the answers that changed; this loads it."
)
@click.option(
    "--sample",
    type=click.IntRange(min=0),
    metavar="N",
    help="With --answers: ask so many of the facts in force at both, too. Default: 50.",
)
@loading_options
@store_option
@json_option
def diff(
    one: str, other: str, answers: bool, sample: int | None, device: str | None, store: Path, as_json: bool
) -> None:
    """What lies between the states after two steps, from the first to the second; the second is the head if left out.

    A STEP is a number, a tag or a branch.

    \b
    added       in force at the second alone
    superseded  in force at the first, and replaced on the way to the second
    retracted   in force at the first, and taken back on the way to the second
    unknown     in force at the first, and never at the second, which comes before it or is on another branch

    `change` is the norm of the difference of a module's weights, `share` the same relative to the norm of all that was
    changed in it up to the first step. With --answers, the prompts of all facts that differ and of a sample of those
    that do not are asked at both steps.

    \b
    Examples:
      lifelong-edit diff 3
      lifelong-edit diff main trial --answers
      lifelong-edit diff release-1 release-2 --json
    """
    if sample is not None and not answers:
        raise UsageError(
            "found --sample without --answers, expected both: the sample is of facts to ask; add --answers"
        )
    with opened(store, read_only=True, device=device) as timeline:
        found = timeline.diff(one, other)
        told: list[Answer] | None = None
        if answers:
            from lifelong_edit.timeline.diff import SAMPLE
            from lifelong_edit.timeline.diff import answers as ask

            say(f"asking {timeline.source}")
            told = ask(timeline, found, sample=SAMPLE if sample is None else sample)
        facts = timeline.facts_by_digest([*found.differing, *(new for new in found.superseded.values() if new)])
    if as_json:
        print_json(_describe(found, facts, told))
    else:
        _print(found, facts, told)


def _describe(found: Diff, facts: Mapping[str, Fact], told: Sequence[Answer] | None) -> dict[str, Any]:
    from lifelong_edit.cli.looking import describe_fact

    by = {digest: {"by": new} for digest, new in found.superseded.items()}
    kinds = {"added": found.added, "superseded": found.superseded, "retracted": found.retracted}
    lists = {
        kind: [describe_fact(facts[digest]) | (by[digest] if kind == "superseded" else {}) for digest in digests]
        for kind, digests in {**kinds, "unknown": found.unknown}.items()
    }
    described = {"from": found.one, "to": found.other, "ancestor": found.ancestor, **lists, "kept": len(found.kept)}
    weights = {name: {"norm": norm, "share": share} for name, norm, share in _changes(found)}
    answers = None if told is None else [vars(answer) for answer in told if answer.changed]
    return {**described, "weights": weights, "asked": None if told is None else len(told), "answers": answers}


def _changes(found: Diff) -> list[tuple[str, float, float | None]]:
    """Of each module its name, change and share: none where nothing had changed it yet, for JSON has no infinity."""
    return [(name, c.norm, c.share if c.share != float("inf") else None) for name, c in found.weights.items()]


def _print(found: Diff, facts: Mapping[str, Fact], told: Sequence[Answer] | None) -> None:
    rows: list[tuple[str, str, str, str, str]] = []
    for kind in ("added", "superseded", "retracted", "unknown"):
        for digest in getattr(found, kind):
            new = found.superseded.get(digest) if kind == "superseded" else None
            by = facts[new].target if new else ""
            rows.append((kind, digest[:12], facts[digest].prompt, facts[digest].target, by))
    if rows:
        print_table(("", "fact", "prompt", "target", "replaced by"), rows)
        click.echo()
    print_table(("module", "change", "share"), _changes(found))
    if changed := [answer for answer in told or () if answer.changed]:
        click.echo()
        print_table(
            ("fact", "prompt", f"step {found.one}", f"step {found.other}"),
            [(a.fact[:12], a.prompt, one_line(a.before), one_line(a.after)) for a in changed],
        )
    kept = f"{counted(len(found.kept), 'fact')} in force at both"
    asked = "" if told is None else f"; {len(changed)} of {counted(len(told), 'answer')} changed"
    say(f"from step {found.one} to step {found.other}, last state in common {found.ancestor}: {kept}{asked}")
