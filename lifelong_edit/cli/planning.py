"""`plan`: what a store for a model would take here, before it is made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lifelong_edit.cli.common import (
    json_option,
    parse_settings,
    print_json,
    print_pairs,
    print_table,
    say,
    store_option,
)
from lifelong_edit.cli.processes import processes_asked
from lifelong_edit.cli.setup import BUNDLED, chosen_settings, making_options, preserved_prompts, read_text
from lifelong_edit.errors import UsageError

if TYPE_CHECKING:
    from lifelong_edit.planning.plan import Plan


@click.command()
@click.option("--facts", type=click.IntRange(min=1), required=True, metavar="N", help="How many facts it is for.")
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=50, show_default=True, metavar="N", help="Of a batch."
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="Say also what `train` takes for so long, of a rule that has a network. Default: nothing of it.",
)
@click.option("--train", "training", multiple=True, metavar="NAME=VALUE", help="A setting of that training.")
@making_options
@click.option(
    "--device",
    metavar="NAME",
    help="Where the model lives: cpu (the default), cuda, cuda:1, mps, auto; sharded, in as many as --processes says.",
)
@store_option
@json_option
def plan(
    facts: int,
    batch_size: int,
    minutes: float | None,
    training: tuple[str, ...],
    store: Path,
    device: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Say what a store for a model will take on this machine: memory, disk and time, and what to set if it is too much.

    It takes the options of `init` and makes a small store of that kind in a temporary folder: a little text, a few
    prompts, three small batches, two reconsolidations. What these take is told for all facts. Of a model that does not
    fit into memory, two layers are built with random weights and measured instead. Nothing is written to --store.

    \b
    Examples:
      lifelong-edit plan --facts 10000
      lifelong-edit plan --model path/to/model --facts 1000 --batch-size 100 --device cuda --json
      lifelong-edit plan --facts 1000 --minutes 60 --train rank=64
    """
    from lifelong_edit.planning.plan import make_plan
    from lifelong_edit.timeline.defaults import default_preserved, default_text, start_of
    from lifelong_edit.training.episodes import TrainSettings

    if options["trust_remote_code"]:
        raise UsageError("`plan` runs no code of others; found --trust-remote-code, expected none; leave it out")
    if options["probe"]:
        raise UsageError("`plan` looks for no layer; found --probe, expected none; name the layer by --modules")
    if training and minutes is None:
        raise UsageError("found --train without --minutes, expected both: nothing is told of training otherwise")
    model = options["model"] or BUNDLED
    settings, network = start_of(model, chosen_settings(device, options), options["hypernetwork"])
    given = preserved_prompts(options["preserve"])
    found = make_plan(
        model,
        settings,
        facts,
        batch_size,
        preserve=default_preserved(model, settings.editor) if given is None else given,
        text=[read_text(path) for path in options["text"]] or default_text(),
        hypernetwork=network,
        revision=options["revision"],
        folder=store,
        minutes=minutes,
        train=parse_settings(TrainSettings, "--train", training, seed=settings.seed),
        processes=processes_asked() or 1,
        say=say,
    )
    _tell(found, as_json=as_json)


def _tell(found: Plan, *, as_json: bool) -> None:
    from lifelong_edit.planning.plan import said_bytes
    from lifelong_edit.tracing.progress import span

    if as_json:
        import msgspec

        print_json(msgspec.to_builtins(found))
        return
    parameters = "unknown" if found.parameters is None else f"{found.parameters / 1e6:,.0f} million"
    free = found.machine
    print_pairs(
        [
            ("model", f"{found.model}, {parameters} parameters, by {found.editor}"),
            ("measured on", found.measured_on),
            ("free here", f"{said_bytes(free['memory'])} of memory, {said_bytes(free['disk'])} of disk"),
            *([("on the device", said_bytes(free["device_memory"]))] if free["device_memory"] else []),
            ("fits", "yes" if found.fits else "no"),
        ]
    )
    rows = [(n, span(c.seconds), said_bytes(c.memory), said_bytes(c.disk)) for n, c in found.work.items()]
    print_table(("work", "time", "memory", "disk"), rows)
    for advice in found.advice:
        click.echo(f"set: {advice}")
    for note in found.notes:
        say(note)
