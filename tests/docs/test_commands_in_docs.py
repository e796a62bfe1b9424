"""Every command and every Python block of README and docs runs, examples are facts, and links lead somewhere.

The tutorial and the pages that go on with its store are in test_tutorial.py, the recipes in test_recipes.py, so that
processes share the work.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from lifelong_edit import facts
from tests.docs.pages import DOCUMENTS, FENCE, FURTHER, RECIPES, REPOSITORY, TUTORIAL, Reader, blocks

ALONE = [document for document in DOCUMENTS if document not in (TUTORIAL, *FURTHER)]
UNTESTED = (
    "make ",
    "source .venv/bin/activate",
    "git clone ",
    "cd lifelong-edit",
    "pip install ",
    "python -m benchmarks",
)


@pytest.mark.parametrize(
    "document", [d for d in DOCUMENTS if d not in (TUTORIAL, RECIPES, *FURTHER)], ids=lambda path: path.stem
)
def test_commands_run(document: Path, tmp_path: Path) -> None:
    """In the folder stand the sample facts, as they do in a clone."""
    here = tmp_path / "here"
    shutil.copytree(REPOSITORY / "facts", here / "facts")
    reader = Reader(here)
    runnable = reader.read(document)
    assert bool(reader.outside) == bool(runnable), f"{document.name}: nothing ran as the installed program"
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
                assert facts.Reader()(json.loads(line)).facts


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
