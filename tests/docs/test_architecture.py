"""The page that a newcomer reads first: the names on it exist, and its table of rooms is the one that is held."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from tests.packaging.test_source import ROOMS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "architecture.md"
TEXT = PAGE.read_text(encoding="utf-8")
NAME = re.compile(r"`([a-z_]+(?:\.[A-Za-z_]+)+)`")
TABLE = re.compile(r"^\| (`[^|]+`) \|", re.MULTILINE)


def found(name: str) -> object:
    """What a dotted name of the package stands for, a module or something in one. Raises AttributeError."""
    parts = name.removeprefix("lifelong_edit.").split(".")
    for length in range(len(parts), -1, -1):
        try:
            thing: object = importlib.import_module(".".join(["lifelong_edit", *parts[:length]]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            thing = getattr(thing, part)
        return thing
    raise AttributeError(name)


@pytest.mark.parametrize(
    "name", sorted({n for n in NAME.findall(TEXT) if not n.endswith((".py", ".md", ".jsonl", ".toml"))})
)
def test_every_name_exists(name: str) -> None:
    assert found(name) is not None


def test_a_name_that_does_not_exist_is_noticed() -> None:
    for name in ("timeline.Timeline.undo", "editors.contract.Nothing", "nowhere.at.all"):
        with pytest.raises(AttributeError):
            found(name)


def test_the_rooms_are_those_that_are_held() -> None:
    """In the same order; the page leaves out the program's entry."""
    rooms = [name for cell in TABLE.findall(TEXT) for name in re.findall(r"`([a-z_.]+)`", cell)]
    assert rooms == [room for room in ROOMS if room != "__main__"]
