"""The commands of the tutorial and of the pages that go on with its store: one test, so that the tutorial runs once."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.docs.pages import FURTHER, GOES_ON, REPOSITORY, TUTORIAL, Reader


def test_commands_run(tmp_path: Path) -> None:
    here = tmp_path / "here"
    shutil.copytree(REPOSITORY / "facts", here / "facts")
    reader = Reader(here)
    assert reader.read(TUTORIAL) and reader.outside
    assert FURTHER, f"no page says that its commands {GOES_ON}"
    for number, further in enumerate(FURTHER):
        shutil.copytree(here, tmp_path / str(number))
        reader = Reader(tmp_path / str(number))
        assert reader.read(further) and reader.outside, f"{further.name} has no commands"
