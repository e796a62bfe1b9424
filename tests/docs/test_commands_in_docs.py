"""Every command and every Python block of README and docs is run, in order, as a reader would run it.

A block fenced as ```console (or ```bash) has commands in the lines that begin with `$ `; what stands between them is
output for the reader, and not compared. ```console exit=3 expects that status of its last command. ```console no-test
is for what would install or run this very test suite, and nothing else. All blocks of one document share a folder; a
document that says that its commands "go on with the store of the tutorial" begins in a copy of the tutorial's.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lifelong_edit.facts import Fact
from lifelong_edit.facts.shapes import recognise

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)
DOCUMENTS = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *PAGES]
TUTORIAL = DOCS / "tutorial.md"
GOES_ON = "go on with the store of the [tutorial](tutorial.md)"
FURTHER = [page for page in PAGES if GOES_ON in page.read_text(encoding="utf-8")]
FENCE = re.compile(r"^```(?P<info>[^\n`]+)\n(?P<body>.*?)^```\s*$", re.DOTALL | re.MULTILINE)
UNTESTED = (
    "make ",
    "source .venv/bin/activate",
    "git clone ",
    "cd lifelong-edit",
    "pip install ",
    "python -m benchmarks",
)


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


def run_block(block: Block, folder: Path) -> None:
    where = f"{block.document.name}:{block.line}"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "default"}
    env.pop("LIFELONG_STORE", None)
    todo = [[sys.executable, "-c", block.body]] if block.language == "python" else []
    todo += [["bash", "-o", "pipefail", "-c", command] for command in block.commands if block.language != "python"]
    assert todo, f"{where}: the block has no line that begins with '$ '"
    for number, command in enumerate(todo, 1):
        expected = block.status if number == len(todo) else 0
        done = subprocess.run(
            command, cwd=folder, env=env, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL
        )
        assert done.returncode == expected, (
            f"{where}: {command[-1]!r} gave {done.returncode}, not {expected}\n{done.stdout}\n{done.stderr}"
        )


def run_document(document: Path, folder: Path) -> list[Block]:
    runnable = [block for block in blocks(document) if block.tested]
    for block in runnable:
        run_block(block, folder)
    return runnable


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if d not in FURTHER], ids=lambda path: path.stem)
def test_commands_run(document: Path, tmp_path: Path) -> None:
    """In the folder stand the sample facts, as they do in a clone."""
    here = tmp_path / "here"
    shutil.copytree(REPOSITORY / "facts", here / "facts")
    runnable = run_document(document, here)
    if document == TUTORIAL:
        # One test, so that the tutorial is run once however tests are spread over processes.
        assert FURTHER, f"no page says that its commands {GOES_ON}"
        for number, further in enumerate(FURTHER):
            shutil.copytree(here, tmp_path / str(number))
            assert run_document(further, tmp_path / str(number)), f"{further.name} has no commands"
    if document.name == "README.md":
        assert any(block.language == "python" for block in runnable) and len(runnable) >= 3


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_only_installation_goes_untested(document: Path) -> None:
    for block in blocks(document):
        if not block.tested:
            odd = [command for command in block.commands if not command.startswith(UNTESTED)]
            assert not odd, f"{document.name}:{block.line}: {odd}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_example_records_are_facts(document: Path) -> None:
    """Every ```json block holds records that `stream` would take, one a line."""
    for match in FENCE.finditer(document.read_text(encoding="utf-8")):
        if match["info"].split()[0] == "json":
            for line in match["body"].splitlines():
                assert isinstance(recognise(json.loads(line)), Fact)


def test_a_failing_command_is_noticed(tmp_path: Path) -> None:
    text = "```console\n$ true\n$ ls \\\n  nowhere\n```\n"
    (tmp_path / "page.md").write_text(text)
    (block,) = blocks(tmp_path / "page.md")
    assert block.commands == ["true", "ls nowhere"]
    with pytest.raises(AssertionError, match=r"page.md:1: 'ls nowhere' gave 2, not 0"):
        run_block(block, tmp_path)


LINK = re.compile(r"\]\((?!https?://|mailto:)(?P<path>[^)#\s]+)?(?:#(?P<anchor>[^)\s]+))?\)")


def anchors(document: Path) -> set[str]:
    """The anchors that headings make, as the usual renderers make them."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE):
        found.add(re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-"))
    return found


@pytest.mark.parametrize("document", [*DOCUMENTS, REPOSITORY / "CHANGELOG.md"], ids=lambda path: path.stem)
def test_links_lead_somewhere(document: Path) -> None:
    """Every relative link names a file that exists, and every anchor a heading in it."""
    for link in LINK.finditer(document.read_text(encoding="utf-8")):
        target = document.parent / link["path"] if link["path"] else document
        assert target.exists(), f"{document.name} links to {link['path']}"
        if link["anchor"]:
            assert link["anchor"] in anchors(target), f"{document.name} links to {link['path']}#{link['anchor']}"
