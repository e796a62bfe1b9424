"""Writes docs/cli.md from the help texts of the command line: `python scripts/cli-docs.py docs/cli.md`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

HEAD = """\
# The command line

<!-- Made by scripts/cli-docs.py from the help texts; do not edit by hand. -->

stdout is data (tables, or JSON with `--json`), stderr is progress and logs. Every command that needs a store takes `--store DIR`, or finds it in the environment variable `LIFELONG_STORE`; the default is `lifelong-store` in the current folder. A run that was interrupted or killed is continued by the same command.

| exit code | means |
| --- | --- |
| 0 | done |
| 1 | a failure, with its reason in one line |
| 2 | wrong usage |
| 3 | bad input: file and line of the first bad record; nothing of that batch was applied |
| 4 | the store is damaged or locked |
| 5 | the model does not match the store |
| 130 | interrupted (Ctrl-C); what was saved stays |
| 143 | terminated (SIGTERM); what was saved stays |
"""  # noqa: E501


def pages() -> Iterator[tuple[str, str]]:
    """(command line, help text) of the program and of each command, in the program's order."""
    os.environ["COLUMNS"] = "100"
    import click

    from lifelong_edit.cli import cli

    root = click.Context(cli, info_name="lifelong-edit", max_content_width=100, terminal_width=100)
    yield "lifelong-edit", cli.get_help(root)
    for name in cli.list_commands(root):
        command = cli.get_command(root, name)
        assert command is not None
        context = click.Context(command, info_name=name, parent=root, max_content_width=100, terminal_width=100)
        yield f"lifelong-edit {name}", command.get_help(context)


def table() -> str:
    """A line for each command: the first sentence of its help, and a link to all of it."""
    from lifelong_edit.cli import cli

    lines = ["| command | does |", "| --- | --- |"]
    for name in sorted(cli.commands):
        text = cli.commands[name].get_short_help_str(limit=1000).replace("|", "\\|")
        lines.append(f"| [`{name}`](#lifelong-edit-{name}) | {text} |")
    return "\n".join(lines) + "\n"


def document() -> str:
    """The whole page: the exit codes, a table with a line for each command, and all help texts."""
    parts = [HEAD, table()]
    for title, text in pages():
        lines = "\n".join(line.rstrip() for line in text.splitlines())
        parts.append(f"## {title}\n\n```text\n{lines}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(document(), encoding="utf-8")
