"""The edited model for everyone else."""

from __future__ import annotations

from pathlib import Path

import click

from lifelong_edit.cli.common import at_option, json_option, loading_options, opened, print_json, say, store_option
from lifelong_edit.editors.contract import Format
from lifelong_edit.editors.registry import rule_of
from lifelong_edit.export.formats import FORMATS
from lifelong_edit.export.formats import export as write


@click.command()
@click.option(
    "--format",
    "kind",
    type=click.Choice(list(FORMATS)),
    default="transformers",
    show_default=True,
    help="; ".join(f"`{name}`: {form.says}" for name, form in FORMATS.items()) + ".",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="The folder to write.")
@click.option(
    "--dtype",
    type=click.Choice(["float16", "bfloat16", "float32"]),
    help="Of the weights; by default that of the store's model.",
)
@at_option
@click.option("--force", is_flag=True, help="Replace an earlier export; nothing else is ever replaced.")
@store_option
@loading_options
@json_option
def export(
    kind: Format,
    out: Path,
    dtype: str | None,
    at: str | None,
    force: bool,
    store: Path,
    device: str | None,
    as_json: bool,
) -> None:
    """Write the edited model at the head, or as of a step.

    The folder holds weights (safetensors), tokenizer and `lifelong_edit.json`, which says where
    it comes from. It is read back before it appears, whole or not at all.

    \b
    Examples:
      lifelong-edit export --out edited
      lifelong-edit export --out before --at 3 --dtype bfloat16 --force
    """
    FORMATS[kind].require_dtype(dtype)
    with opened(store, read_only=True, device=device) as timeline:
        rule_of(timeline.settings.editor).require_export(kind)
        step = timeline.head if at is None else timeline.show(at).step
        record = timeline.show(step)
        origin = {
            "step": step,
            "weights_digest": record.weights_digest,
            "live_digest": record.live_digest,
            "live_facts": len(timeline.at(step).facts()),
        }
        say(f"loading {timeline.source}")
        write(kind, timeline.bench().loaded, timeline.overlay(step), out, force=force, provenance=origin, dtype=dtype)
    if as_json:
        print_json({"out": str(out), "format": kind, **origin})
    else:
        click.echo(out)
