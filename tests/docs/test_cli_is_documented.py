"""No command without help, none that the table leaves out, and a reference page that is what the program says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from lifelong_edit.cli import cli
from lifelong_edit.training.episodes import TrainSettings

REPOSITORY = Path(__file__).resolve().parents[2]
COMMANDS = sorted(cli.commands)


@pytest.mark.parametrize("name", COMMANDS)
def test_command_is_in_the_table(name: str) -> None:
    """In one line, whole: a summary that was cut short ends in dots."""
    page = (REPOSITORY / "docs" / "cli.md").read_text(encoding="utf-8")
    row = re.search(rf"^\| \[`{name}`\]\(#lifelong-edit-{name}\) \| (.+) \|$", page, re.MULTILINE)
    assert row, f"`{name}` is not in the table of docs/cli.md"
    assert row[1].endswith(".") and not row[1].endswith("...")


@pytest.mark.parametrize("name", COMMANDS)
def test_command_has_help(name: str) -> None:
    """The command itself, and each of its options."""
    command = cli.commands[name]
    assert command.help and len(command.help.split()) > 3
    silent = [p.name for p in command.params if isinstance(p, click.Option) and not p.help and not p.hidden]
    assert not silent


def test_reference_is_current(tmp_path: Path) -> None:
    """docs/cli.md is made from the help texts: `python scripts/cli-docs.py docs/cli.md`.

    In a process of its own: columns of help depend on which commands were run in this one before.
    """
    made = tmp_path / "cli.md"
    subprocess.run([sys.executable, REPOSITORY / "scripts" / "cli-docs.py", made], check=True, timeout=120)
    assert (REPOSITORY / "docs" / "cli.md").read_text(encoding="utf-8") == made.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", TrainSettings.__struct_fields__)
def test_training_setting_is_documented(name: str) -> None:
    page = (REPOSITORY / "docs" / "training.md").read_text(encoding="utf-8")
    assert re.search(rf"^\|[^|]*`{name}`[^|]*\|", page, re.MULTILINE), f"`{name}` is not in docs/training.md's table"
