"""The editing rules by name. A new rule is a folder of this package, with a `RULE` in it, and one line here."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from lifelong_edit.errors import UsageError, near

if TYPE_CHECKING:
    from lifelong_edit.editors.contract import Rule

RULES: tuple[str, ...] = (
    *("malmen", "gradient", "ultraedit", "stableedit", "rledit", "mend", "search", "neurons"),
    *("rome", "r-rome", "memit", "memit-seq", "emmet", "alphaedit", "nse"),
    *("ft", "ft-replay", "locft", "li", "grace"),
    *("coachhook", "wise", "retrieval", "serac"),
)
PLAIN, TRAINED, NEURONS = "gradient", "malmen", "neurons"
"""The rule of a new store unless it is told otherwise: without a trained network, with one, and of a large decoder or a
classifier."""

AROUND = "+"
"""Stands between a wrapper and the rule inside."""


def core_of(name: str) -> str:
    """The rule inside of all wrappers: `memit` of `rect+memit`."""
    return name.rpartition(AROUND)[2]


def require_rule(name: str) -> None:
    """Raise UsageError, listing the rules, where there is none of that name, or its wrapper cannot stand around it."""
    if AROUND in name:
        rule_of(name)
    elif name not in RULES:
        if name in import_module("lifelong_edit.editors.wrapping").WRAPPERS:
            raise UsageError(
                f"found the wrapper {name!r} in a rule's place; expected a rule last, as {name}{AROUND}memit"
            )
        raise UsageError(
            f"setting editor is {name!r}; it must be one of {', '.join(RULES)}, or one with a wrapper before it as "
            f"rect{AROUND}memit{near(name, RULES)}; `lifelong-edit editors` lists all"
        )


def rule_of(name: str) -> Rule:
    """The declaration of a rule; needs no torch.

    A name such as `rect+memit` is a rule with a wrapper around it (`editors.wrapping`). Raises UsageError where there
    is none of that name, or the wrapper cannot stand around the rule.
    """
    wrapper, around, inner = name.partition(AROUND)
    if around:
        made: Rule = import_module("lifelong_edit.editors.wrapping").wrapped(wrapper, rule_of(inner))
        return made
    require_rule(name)
    found: Rule = import_module(f"lifelong_edit.editors.{name.replace('-', '_')}").RULE
    return found
