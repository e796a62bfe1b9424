"""Names for states: tags that stay, branches that move. Both are steps of the log, and a fold over it tells them."""

from __future__ import annotations

import re
from collections.abc import Set
from dataclasses import dataclass, field
from typing import Literal

from lifelong_edit.errors import UsageError
from lifelong_edit.facts.checks import shown
from lifelong_edit.stores import StepRecord

MAIN = "main"
"""The branch that every store begins with."""
HEAD_NAME = "head"
"""What a step may be called that is the last of the log."""
NAMING = ("tag", "branch", "switch")
"""Kinds of steps that change names alone."""
KEEPING = ("compact", "restore", "purge")
"""Kinds of steps that look after the store, and move no branch."""
StepName = int | str
"""A step: its number, the name of a tag or a branch, or `head`."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]*")
_LONGEST = 100


@dataclass
class Branch:
    """A named head. What it knows of the input is what its own steps brought: another branch may be given it anew."""

    tip: int
    """The last step that moved it; where none has, the step whose state it was begun at."""
    added: set[str] = field(default_factory=set)
    """Facts that steps made on it added, whatever was rolled back since."""
    places: set[tuple[str, int]] = field(default_factory=set)
    """Places that steps made on it consumed, whatever was rolled back since."""


class Names:
    """Tags and branches after the steps taken so far."""

    def __init__(self) -> None:
        self.tags: dict[str, int] = {}
        """The step whose state a tag names."""
        self.branches = {MAIN: Branch(0)}
        self.current = MAIN
        """The branch that further steps move."""

    def take(self, record: StepRecord) -> None:
        """Go on by one step."""
        if record.kind in NAMING and record.name is not None:
            self._take_name(record.kind, record.name, record.named)
            return
        if record.kind in KEEPING:
            return
        branch = self.branches[self.current]
        branch.tip = record.step
        branch.added.update(record.added)
        branch.places.update((place.file_digest, place.number) for place in record.places)

    def _take_name(self, kind: str, name: str, named: int | None) -> None:
        if kind == "tag" and named is not None:
            self.tags[name] = named
        elif kind == "tag":
            self.tags.pop(name, None)
        elif named is None:
            self.branches.pop(name, None)
        else:
            if kind == "branch":
                self.branches[name] = Branch(named)
            self.current = name

    def find(self, name: str) -> int | None:
        """The step that a tag or a branch stands for, None where there is no such name."""
        if name in self.tags:
            return self.tags[name]
        return self.branches[name].tip if name in self.branches else None

    def require(self, kind: Literal["tag", "branch"], name: str) -> int:
        """The step that a tag or branch stands for. Raises UsageError, listing what there is, for an unknown one."""
        known: Set[str] = self.tags.keys() if kind == "tag" else self.branches.keys()
        step = self.find(name) if isinstance(name, str) and name in known else None
        if step is None:
            raise UsageError(f"there is no {kind} {name!r}; expected {listed(known)}, see `lifelong-edit {kind}`")
        return step

    def require_free(self, name: str) -> None:
        """Raise UsageError where a name cannot be given: a number, an odd character, one that is taken."""
        if not isinstance(name, str):
            raise UsageError(f"found {shown(name)} as a name, expected text; write it as text")
        if len(name) > _LONGEST or not _NAME.fullmatch(name) or name.isdigit() or name.casefold() == HEAD_NAME:
            raise UsageError(
                f"found the name {name[:_LONGEST]!r}; expected up to {_LONGEST} letters, digits, '.', '-', '_', '/', "
                f"the first of them a letter, digit or '_', no number and not {HEAD_NAME!r}; choose another"
            )
        if (step := self.find(name)) is not None:
            kind = "tag" if name in self.tags else "branch"
            raise UsageError(
                f"there is a {kind} {name!r} already, at step {step}; choose another name, or delete it first"
            )


def listed(names: Set[str]) -> str:
    """Names as a sentence gives them, some of many; "none, for there are none" where there are none."""
    if not names:
        return "none, for there are none"
    shown = sorted(names)[:20]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return f"one of {', '.join(shown)}{more}"
