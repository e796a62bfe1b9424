"""Tables: plain lines for programs, whatever the environment says; columns that wrap on a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest
from click.testing import CliRunner

from lifelong_edit.cli import PROGRAM, cli

LONG = " ".join(["long"] * 11)
ROWS = [(1, LONG, 0.5, "[red]"), (12, "日本", None, ":smile:"), (3, LONG, 2, "")]
CODE = f"""
from lifelong_edit.cli.common import print_table
print_table(("step", "fact", "share", "[bold]"), {ROWS!r})
"""
PLAIN = f"""\
step  fact                                                    share  [bold]
   1  {LONG}  0.500  [red]
  12  日本                                                        -  :smile:
   3  {LONG}      2
"""


def piped(**environment: str) -> str:
    command = [sys.executable, "-c", CODE]
    return subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **environment}).stdout


@pytest.mark.parametrize(
    "environment", [{}, {"FORCE_COLOR": "1", "COLUMNS": "30"}, {"TTY_COMPATIBLE": "1", "TERM": "xterm-256color"}]
)
def test_a_pipe_gets_plain_lines(environment: dict[str, str]) -> None:
    assert piped(**environment) == PLAIN


def test_a_narrow_terminal_wraps() -> None:
    """Nothing is cut there either, and nothing goes beyond the edge."""
    reader, writer = pty.openpty()
    environment = {**os.environ, "COLUMNS": "40", "LINES": "20", "NO_COLOR": "1", "TERM": "xterm"}
    with subprocess.Popen([sys.executable, "-c", CODE], stdout=writer, env=environment) as process:
        os.close(writer)
        shown = b""
        try:
            while part := os.read(reader, 4096):
                shown += part
        except OSError:  # the other end is closed
            pass
        assert process.wait() == 0
    os.close(reader)
    lines = shown.decode().replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()
    assert max(map(len, lines)) <= 40
    assert sum(line.split().count("long") for line in lines) == 22


@pytest.mark.parametrize("columns", ["40", "30", "none", "-5", "0"])
def test_help_is_as_narrow_as_it_is_asked_to_be(columns: str) -> None:
    """Options that are longer than a line, and examples, stand as they are; text does not go beyond the edge."""
    for command in ("log", "status"):
        found = CliRunner().invoke(cli, [command, "--help"], prog_name=PROGRAM, env={"COLUMNS": columns})
        text = found.output.partition("Examples:")[0]
        widest = max(map(len, text.splitlines()))
        assert found.exit_code == 0 and (widest <= int(columns) if columns in ("40", "30") else widest > 60)
