"""The edited model for everyone else: export, apply."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lifelong_edit.cli.common import (
    at_option,
    counted,
    json_option,
    loading_options,
    opened,
    print_json,
    say,
    store_option,
)
from lifelong_edit.editors.contract import Format
from lifelong_edit.editors.registry import rule_of
from lifelong_edit.errors import UsageError
from lifelong_edit.export.formats import FORMATS, PACKINGS
from lifelong_edit.export.formats import export as write
from lifelong_edit.export.places import require_free

if TYPE_CHECKING:
    from lifelong_edit.timeline import Timeline

_ASKED = 200
"""Facts in force whose answers an adapter is held against, the newest ones."""


class Size(click.ParamType[str]):
    """A size of files, as transformers takes it."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The size. Raises UsageError where it is none."""
        if not re.fullmatch(r"[1-9]\d*(\.\d+)?[KMGT]B", str(value)):
            raise UsageError(f"found the size {value!r}, expected a number of KB, MB or GB, such as 2GB")
        return str(value)


dtype_option = click.option(
    "--dtype",
    type=click.Choice(["float16", "bfloat16", "float32"]),
    help="Of the weights; by default that of the store's model.",
)
packing_option = click.option(
    "--dtype",
    type=click.Choice(["float16", "bfloat16", "float32", *PACKINGS]),
    help="Of the weights; by default that of the store's model. `q8_0` packs a gguf into eight bits a number.",
)
shard_option = click.option(
    "--max-shard-size", type=Size(), metavar="SIZE", help="Cut weights into files of at most SIZE, such as 2GB."
)
out_option = click.option(
    "--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="The folder to write."
)
force_option = click.option("--force", is_flag=True, help="Replace an earlier export; nothing else is ever replaced.")


@click.command()
@click.option(
    "--format",
    "kind",
    type=click.Choice(list(FORMATS)),
    default="transformers",
    show_default=True,
    help="; ".join(f"`{name}`: {form.says}" for name, form in FORMATS.items()) + ".",
)
@out_option
@packing_option
@shard_option
@click.option("--rank", type=click.IntRange(min=1), metavar="R", help="Of a LoRA adapter. Default: by --error.")
@click.option(
    "--error",
    type=click.FloatRange(min=0, max=1, max_open=True),
    metavar="SHARE",
    help="Of a LoRA adapter: the smallest rank that leaves out at most this share of the change. Default: 0.01.",
)
@click.option("--push", metavar="REPO", help="Then send the folder to this repository of the hub, made where needed.")
@click.option("--public", is_flag=True, help="With --push: a repository that is made is not private.")
@click.option("--dry-run", is_flag=True, help="With --push: say what would be sent, and send nothing.")
@at_option
@force_option
@store_option
@loading_options
@json_option
def export(
    kind: Format,
    out: Path,
    push: str | None,
    public: bool,
    dry_run: bool,
    at: str | None,
    force: bool,
    store: Path,
    device: str | None,
    as_json: bool,
    **wanted: Any,
) -> None:
    """Write the edited model at the head, or as of a step.

    The folder holds what the format is made of, a model card (README.md) with the report's figures, and
    `lifelong_edit.json`, which says where it comes from. It appears whole or not at all.

    \b
    Examples:
      lifelong-edit export --out edited
      lifelong-edit export --out before --at 3 --dtype bfloat16 --force
      lifelong-edit export --format delta --out change
      lifelong-edit export --format peft --rank 16 --out adapter
      lifelong-edit export --format gguf --dtype q8_0 --out packed
      lifelong-edit export --out edited --push me/my-model --dry-run
    """
    if push is None and (public or dry_run):
        raise UsageError("found --public or --dry-run without --push, expected them with it; add --push REPO")
    FORMATS[kind].require(wanted)
    require_free(out, force)
    if push is not None:
        from lifelong_edit.export.pushing import require_repository

        require_repository(push)
    with opened(store, read_only=True, device=device) as timeline:
        rule_of(timeline.settings.editor).require_export(kind)
        FORMATS[kind].require_model(timeline.source, timeline.config.model.revision)
        step = timeline.head if at is None else timeline.show(at).step
        origin, found = _written(timeline, step, kind, out, force, wanted)
    sent = None if push is None else _pushed(push, out, dry_run=dry_run, private=not public)
    if as_json:
        told = {"out": str(out), "format": kind, **origin, **found}
        print_json(told if sent is None else {**told, "push": sent})
    else:
        click.echo(out)


def _written(
    timeline: Timeline, step: int, kind: Format, out: Path, force: bool, wanted: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Where an export comes from, and what its format tells."""
    from lifelong_edit.eval.reports.card import card
    from lifelong_edit.export.placing import loader_of
    from lifelong_edit.tasks import leading

    record, facts = timeline.show(step), timeline.at(step).facts()
    origin = {
        "step": step,
        "weights_digest": record.weights_digest,
        "live_digest": record.live_digest,
        "live_facts": len(facts),
    }
    say(f"loading {timeline.source}")
    loaded = timeline.bench().loaded
    if "questions" in FORMATS[kind].takes:
        wanted = {**wanted, "questions": [leading(loaded, fact) for fact in facts[-_ASKED:]]}
    text = card(timeline, step, kind, facts, loader_of(loaded))
    found = write(kind, loaded, timeline.overlay(step), out, force=force, provenance=origin, card=text, **wanted)
    if (lora := found.get("lora")) is not None:
        say(f"rank {lora['rank']} leaves out {lora['error']:.2%} of the change{_differing(lora)}")
    if (packed := found.get("gguf")) is not None:
        off = f", {packed['error']:.2%} off at most," if packed["error"] else ""
        say(f"{packed['type']}{off} of architecture {packed['architecture']}{_differing(packed)}")
    return origin, found


def _differing(told: dict[str, Any]) -> str:
    """How many answers differ from those of the state, where any were asked."""
    return f"; {told['differ']} of {counted(told['asked'], 'answer')} differ" if told["asked"] else ""


def _pushed(repository: str, folder: Path, *, dry_run: bool, private: bool) -> dict[str, Any]:
    """What was sent, or would be."""
    from lifelong_edit.export.pushing import push, sending

    found = sending(repository, folder)
    size = sum(found.files.values()) / 1e6
    say(
        f"{'would send' if dry_run else 'sending'} {counted(len(found.files), 'file')}, {size:,.1f} MB, to {repository}"
    )
    for name, count in found.files.items() if dry_run else ():
        say(f"  {name}  {count:,} bytes")
    place = None if dry_run else push(repository, folder, private=private)
    return {"repository": repository, "private": private, "files": found.files, "sent": place}


@click.command()
@click.argument("delta", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="DELTA")
@click.option("--model", metavar="MODEL", help="The base: a folder, a GGUF file or a hub id. Default: as it was.")
@out_option
@dtype_option
@shard_option
@force_option
@json_option
def apply(
    delta: Path,
    model: str | None,
    out: Path,
    dtype: str | None,
    max_shard_size: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Put the change in DELTA, which `export --format delta` wrote, on its base, and write the whole model.

    The base is known by its fingerprint; exit code 5 where it is another model. What is written is the state to the
    bit. `apply.py` in the folder does the same without this program.

    \b
    Examples:
      lifelong-edit apply change --out edited
      lifelong-edit apply change --model /mnt/models/our-model --out edited --dtype bfloat16
    """
    from lifelong_edit.export.delta import apply as put

    say(f"applying {delta}")
    told = put(delta, out, model=model, force=force, dtype=dtype, max_shard_size=max_shard_size)
    if as_json:
        print_json({"out": str(out), "delta": told})
    else:
        click.echo(out)
