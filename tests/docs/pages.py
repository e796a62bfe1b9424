"""The pages of README and docs, and running what stands in their blocks, in order, as a reader would.

A block fenced as ```console (or ```bash) has commands in the lines that begin with `$ `; what stands between them is
output for the reader, and not compared. ```console exit=3 expects that status of its last command. ```console no-test
is for what would install or run this very test suite, and nothing else. All blocks of one document share a folder; a
document that says that its commands "go on with the store of the tutorial" begins in a copy of the tutorial's.

The first command of a page runs as a reader's does, as a process of the installed program. The others run in this
process where that comes to the same, see `inside`: most of such a process's time goes into importing torch.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.docs import inside

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)
DOCUMENTS = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *PAGES]
TUTORIAL = DOCS / "tutorial.md"
RECIPES = DOCS / "recipes.md"
GOES_ON = "go on with the store of the [tutorial](tutorial.md)"
FURTHER = [page for page in PAGES if GOES_ON in page.read_text(encoding="utf-8")]
FENCE = re.compile(r"^```(?P<info>[^\n`]+)\n(?P<body>.*?)^```\s*$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block that can be run. status: what its last command has to exit with."""

    document: Path
    line: int
    language: str
    words: tuple[str, ...]
    body: str

    @property
    def tested(self) -> bool:
        return "no-test" not in self.words

    @property
    def status(self) -> int:
        return next((int(word.removeprefix("exit=")) for word in self.words if word.startswith("exit=")), 0)

    @property
    def commands(self) -> list[str]:
        """The commands, continuation lines joined."""
        joined = re.sub(r"\s*\\\n(?:> )?\s*", " ", self.body)
        return [line[2:].strip() for line in joined.splitlines() if line.startswith("$ ")]


def blocks(document: Path) -> Iterator[Block]:
    text = document.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        language, *words = match["info"].split()
        if language in {"console", "bash", "python"}:
            yield Block(document, text[: match.start()].count("\n") + 1, language, tuple(words), match["body"])


@dataclass
class Reader:
    """Somebody who types what a page says, in a folder. outside: the commands that ran as processes of their own."""

    folder: Path
    outside: list[str] = field(default_factory=list)

    def read(self, document: Path) -> list[Block]:
        """Run the blocks of a page; AssertionError at the first command that does not end as the page says."""
        runnable = [block for block in blocks(document) if block.tested]
        for block in runnable:
            self.follow(block)
        return runnable

    def follow(self, block: Block) -> None:
        """Run one block."""
        todo = [block.body] if block.language == "python" else block.commands
        where = f"{block.document.name}:{block.line}"
        assert todo, f"{where}: the block has no line that begins with '$ '"
        for number, command in enumerate(todo, 1):
            expected = block.status if number == len(todo) else 0
            python = block.language == "python"
            status, output = self.run_python(command) if python else self.run_command(command)
            assert status == expected, f"{where}: {command!r} gave {status}, not {expected}\n{output}"

    def run_command(self, command: str) -> tuple[int, str]:
        """Exit status and output of a line that a shell would take."""
        with inside.working_in(self.folder):
            words = inside.plain_words(command)
        if self.outside and words is not None and words[0] == inside.PROGRAM:
            return inside.run_program(words[1:], self.folder)
        return self.run_outside(command, ["bash", "-o", "pipefail", "-c", command], inside.PROGRAM in command)

    def run_python(self, code: str) -> tuple[int, str]:
        """Exit status and output of a program."""
        if self.outside and not inside.leaves_open(code):
            return inside.run_code(code, self.folder)
        return self.run_outside(code, [sys.executable, "-c", code], True)

    def run_outside(self, text: str, command: list[str], ours: bool) -> tuple[int, str]:
        """The same of a process. ours: whether it runs what is installed, and not only tools of the shell."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        env = {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "default"}
        env.pop("LIFELONG_STORE", None)
        done = subprocess.run(
            command, cwd=self.folder, env=env, capture_output=True, text=True, timeout=inside.LIMIT,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        self.outside += [text] if ours else []
        return done.returncode, done.stdout + done.stderr
