"""Completion of commands and options in the user's shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

VARIABLE = "_LIFELONG_EDIT_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that completes commands and options in a shell.

    \b
    Examples:
      lifelong-edit completion bash >> ~/.bashrc
      lifelong-edit completion zsh >> ~/.zshrc
      lifelong-edit completion fish > ~/.config/fish/completions/lifelong-edit.fish
    """
    root = context.find_root()
    kind = get_completion_class(shell)
    assert kind is not None  # click knows these three
    click.echo(kind(root.command, {}, "lifelong-edit", VARIABLE).source())
