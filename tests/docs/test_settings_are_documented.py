"""docs/settings.md is what the classes of the settings say: names, defaults, ranges and texts."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lifelong_edit.editors.ridge.settings import Settings
from lifelong_edit.errors import UsageError

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "scripts" / "settings-docs.py"
PAGE = REPOSITORY / "docs" / "settings.md"


class Base(msgspec.Struct, frozen=True, kw_only=True):
    """What a rule has in common with others."""

    passes: int = 3
    """Rounds
    of a | b."""


class Rule(Base, frozen=True, kw_only=True):
    """A rule of its own."""

    gain: float | None = None
    """Its gain."""

    def __post_init__(self) -> None:
        if self.passes < 1 or (self.gain is not None and not 0 <= self.gain < 1):
            raise UsageError("out of range")


class Silent(Base, frozen=True, kw_only=True):
    """One that says nothing of its field."""

    width: int = 1


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def test_page_is_current(tmp_path: Path) -> None:
    """`make docs` writes it: `python scripts/settings-docs.py docs/settings.md`."""
    made = tmp_path / "settings.md"
    subprocess.run([sys.executable, SCRIPT, made], check=True, timeout=120)
    assert PAGE.read_text(encoding="utf-8") == made.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", Settings.__struct_fields__)
def test_setting_has_a_row(name: str) -> None:
    assert f"\n| `{name}` | " in PAGE.read_text(encoding="utf-8"), f"`{name}` is not in docs/settings.md"


def test_several_classes_make_several_tables(script: dict[str, Any]) -> None:
    """Fields of base classes are rows too, and ranges are those that the class itself enforces."""
    text = script["document"]([("One", Base), ("Two", Rule)])
    assert text.index("## One") < text.index("What a rule has in common") < text.index("## Two")
    assert text.count("| `passes` | 3 | whole number") == 2
    assert "| `passes` | 3 | whole number, more than 0 | Rounds of a \\| b. |" in text
    assert "| `gain` | none | number, 0 or more, less than 1; or none | Its gain. |" in text


def test_a_field_without_words_is_refused(script: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"Silent\.width has no docstring"):
        script["document"]([("Three", Silent)])
