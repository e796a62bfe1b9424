"""Keys of encrypted stores. These commands start without torch."""

from __future__ import annotations

from pathlib import Path

import click

from lifelong_edit.cli.common import say, store_option, wait_option


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
def keygen(file: Path) -> None:
    """Write a new random key to FILE, which its owner alone may read. Nothing is ever overwritten.

    Keep a copy of it where the stores and their backups are not: without it, nothing opens them.

    \b
    Examples:
      lifelong-edit keygen ~/.lifelong-key
      lifelong-edit init --encrypt --key-file ~/.lifelong-key
    """
    from lifelong_edit.stores import write_key_file

    write_key_file(file)
    say(f"wrote a key to {file}; keep a copy of it apart from the stores")


@click.command()
@click.option(
    "--new-key-file",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="The key that is to open the store from here on.",
)
@store_option
@wait_option
def rekey(new_key_file: Path, store: Path, wait: float) -> None:
    """Let another key open an encrypted store; the data stay as they are, and no step is made.

    Interrupted, either key opens the store: do it again. Backups that were made before are opened by the former key.
    Whoever has had both that key and a copy of the store has what was in it, and could read later copies as well:
    against that, make a new store.

    \b
    Examples:
      lifelong-edit keygen new-key && lifelong-edit rekey --key-file old-key --new-key-file new-key
    """
    from lifelong_edit.stores import EditLog

    with EditLog.open(store, timeout=wait) as log:
        log.rekey(new_key_file)
    say(f"{store} is opened by the key in {new_key_file} from here on")
