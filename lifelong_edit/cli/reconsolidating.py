"""The command that solves again over all live facts: reconsolidate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from lifelong_edit.cli.common import (
    author_option,
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
from lifelong_edit.cli.looking import describe_step, guarded, passes_of
from lifelong_edit.cli.measuring import measure_after


@click.command()
@click.option(
    "--start",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="0: from the base weights, whatever the history was; up to 1: from so much of the present change.",
)
@click.option("--no-guard", is_flag=True, help="Commit also what loses by these measures; `log` marks it.")
@reason_option
@author_option
@loading_options
@wait_option
@store_option
@json_option
def reconsolidate(
    start: float,
    no_guard: bool,
    reason: str | None,
    author: str | None,
    device: str | None,
    wait: float,
    store: Path,
    as_json: bool,
) -> None:
    """Solve again over all live facts together, as one committed step.

    A long stream wears: old facts are forgotten bit by bit, and prompts that nobody edited drift. This traces all live
    facts and the preserved prompts anew and solves for all of them at once. It takes up to 24 passes (setting
    `reconsolidation_passes`); each is told on stderr. Interrupted, it leaves the store as it was, and begins anew the
    next time. Its step holds the change of each matrix and the keys of all live facts whole.

    It is refused, and logged as such, where it would lose what the state before it had: right answers on a sample of
    the live facts (`retention`, by more than a standard error), the base model's answers on preserved prompts kept
    aside for this (`locality`, by more than one standard error and a point; not measured without preserved prompts),
    perplexity (by more than 1 %). The model then stays what it was, and the exit code is 1.

    Where `stream` asked a sample of facts after its steps, as many are asked after this one, for `report`.

    \b
    Examples:
      lifelong-edit reconsolidate
      lifelong-edit reconsolidate --start 1 --reason "after week 12"
      lifelong-edit stream week.jsonl --reconsolidate geometric
    """
    with opened(store, read_only=False, device=device, author=author, wait=wait) as timeline:
        step = timeline.reconsolidate(start=start, guard=not no_guard, reason=reason, say=say)
        if step.kind != "refused":
            measure_after(timeline, step.step)
    if as_json:
        print_json(describe_step(step) | {"report": step.report})
    else:
        told = passes_of(step.report) | guarded(step.report)
        columns = ("step", "kind", *told, "seconds", "weights_digest")
        row = (step.step, step.kind, *told.values())
        print_table(columns, [[*row, step.report["seconds"], step.weights_digest[:12]]])
    if step.kind == "refused":
        tell_refusal(step.step, step.report, "error: ")
        raise click.exceptions.Exit(1)


def tell_refusal(step: int, report: Mapping[str, Any], prefix: str = "") -> None:
    """Why a reconsolidation was refused, in one sentence on stderr."""
    why = "; ".join(report["objections"])
    say(f"{prefix}the reconsolidation was refused: {why}; step {step} logs it, and the model is what it was")
