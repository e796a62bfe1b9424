"""`relocate`: a store's model lies somewhere else now."""

from __future__ import annotations

from pathlib import Path

import click

from lifelong_edit.cli.common import device_option, json_option, opened, print_json, say, store_option, wait_option


@click.command()
@click.argument("model", metavar="MODEL")
@wait_option
@store_option
@device_option
@json_option
def relocate(model: str, wait: float, store: Path, device: str | None, as_json: bool) -> None:
    """Say for good that the store's model lies at MODEL now: a folder, a GGUF file or a hub id.

    The model is loaded and has to be the one that the store was made with, by the fingerprints of its weights and of
    its tokenizer; exit code 5 where it is another one. No step is made: where a model lies is true of one machine, and
    is kept beside the log. For once, all commands that load the model take --model.

    \b
    Examples:
      lifelong-edit relocate /mnt/models/our-model
      lifelong-edit ask "The capital of France is" --model /mnt/models/our-model
    """
    with opened(store, read_only=False, device=device, wait=wait) as timeline:
        say(f"loading {model}")
        place = timeline.relocate(model)
        told = {"model": place, "init": timeline.config.model.source, "fingerprint": timeline.config.model.fingerprint}
    if as_json:
        print_json(told)
    else:
        click.echo(place)
