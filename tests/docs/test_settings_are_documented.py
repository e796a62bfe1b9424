"""docs/settings.md is what the classes of the settings say: names, defaults, ranges and texts."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
from msgspec import Meta

from lifelong_edit.editors.registry import RULES, rule_of
from lifelong_edit.settings import StoreSettings

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "scripts" / "settings-docs.py"
PAGE = REPOSITORY / "docs" / "settings.md"


class Base(msgspec.Struct, frozen=True, kw_only=True):
    """What a rule has in common with others."""

    passes: Annotated[int, Meta(ge=1)] = 3
    """Rounds
    of a | b."""


class Rule(Base, frozen=True, kw_only=True):
    """A rule of its own."""

    gain: Annotated[float, Meta(ge=0, lt=1)] | None = None
    """Its gain."""
    share: Annotated[float, Meta(gt=0, le=1.5)] = 0.5
    """Its share."""


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


KINDS = list(dict.fromkeys(rule_of(name).settings for name in RULES))
ROWS = [(kind, name) for kind in KINDS for name in kind.__struct_fields__]


@pytest.mark.parametrize(("kind", "name"), ROWS, ids=lambda value: getattr(value, "__name__", value))
def test_setting_has_a_row(kind: type[StoreSettings], name: str, script: dict[str, Any]) -> None:
    """One, in the part of the page that says whose it is: of every store, of several rules, or of one."""
    parts = PAGE.read_text(encoding="utf-8").split("\n## ")[1:]
    its = [part for (_, told), part in zip(script["SECTIONS"], parts, strict=True) if issubclass(kind, told)]
    rows = sum(part.count(f"\n| `{name}` | ") for part in its)
    assert rows == 1, f"`{name}` is not where it belongs in docs/settings.md"
    assert (f"\n| `{name}` | " in parts[0]) is (name in StoreSettings.__struct_fields__)


def test_several_classes_make_several_tables(script: dict[str, Any]) -> None:
    """What a class takes over stands with the class that it is from; ranges are those of the types."""
    text = script["document"]([("One", Base), ("Two", Rule)])
    assert text.index("## One") < text.index("What a rule has in common") < text.index("| `passes`")
    assert text.index("| `passes`") < text.index("## Two") < text.index("| `gain`")
    assert text.count("| `passes` | 3 | whole number") == 1
    assert "| `passes` | 3 | whole number, 1 or more | Rounds of a \\| b. |" in text
    assert "| `gain` | none | number, 0 or more, less than 1; or none | Its gain. |" in text
    assert "| `share` | 0.5 | number, more than 0, at most 1.5 | Its share. |" in text


def test_fields_of_a_class_without_a_section_are_rows(script: dict[str, Any]) -> None:
    text = script["document"]([("Two", Rule)])
    assert text.index("## Two") < text.index("| `passes` | 3 | whole number") < text.index("| `gain`")


def test_a_field_without_words_is_refused(script: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"Silent\.width has no docstring"):
        script["document"]([("Three", Silent)])
