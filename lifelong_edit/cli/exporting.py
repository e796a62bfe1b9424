"""The edited model for everyone else."""

from __future__ import annotations

from pathlib import Path

import click

from lifelong_edit.cli.common import at_option, device_option, json_option, opened, print_json, say, store_option
from lifelong_edit.editors.registry import rule_of


@click.command()
@click.option(
    "--format",
    "kind",
    type=click.Choice(["transformers"]),
    default="transformers",
    show_default=True,
    help="`transformers`: a folder that `from_pretrained` loads.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="The folder to write.")
@at_option
@click.option("--force", is_flag=True, help="Replace an earlier export; nothing else is ever replaced.")
@store_option
@device_option
@json_option
def export(kind: str, out: Path, at: str | None, force: bool, store: Path, device: str | None, as_json: bool) -> None:
    """Write the edited model at the head, or as of a step.

    The folder holds weights (safetensors, in the dtype of the store's model), tokenizer and
    `lifelong_edit.json`, which says where it comes from. It appears whole or not at all.

    \b
    Examples:
      lifelong-edit export --out edited
      lifelong-edit export --out before --at 3 --force
    """
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
        say(f"loading {timeline.config.model.source}")
        from lifelong_edit.export.whole import export_transformers
        from lifelong_edit.timeline.model import as_tensors

        loaded = timeline.bench().loaded
        export_transformers(loaded, as_tensors(timeline.weights(step)), out, force=force, provenance=origin)
    if as_json:
        print_json({"out": str(out), "format": kind, **origin})
    else:
        click.echo(out)
