"""The editing rules by name. A new rule is a folder of this package, with a `RULE` in it, and one line here."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from lifelong_edit.errors import UsageError

if TYPE_CHECKING:
    from lifelong_edit.editors.contract import Rule

RULES: tuple[str, ...] = (
    *("malmen", "gradient", "ultraedit", "stableedit", "rledit", "mend", "search", "neurons"),
    *("rome", "r-rome", "memit", "memit-seq", "emmet", "alphaedit", "nse"),
    *("ft", "ft-replay", "locft", "li", "grace"),
    *("coachhook", "wise", "retrieval"),
)
PLAIN, TRAINED, LARGE = "gradient", "malmen", "neurons"
"""The rule of a new store unless it is told otherwise: without a trained network, with one, and of a large model."""


def require_rule(name: str) -> None:
    """Raise UsageError, listing the rules, where there is none of that name."""
    if name not in RULES:
        raise UsageError(f"setting editor is {name!r}; it must be one of {', '.join(RULES)}")


def rule_of(name: str) -> Rule:
    """The declaration of a rule; needs no torch. Raises UsageError where there is none of that name."""
    require_rule(name)
    found: Rule = import_module(f"lifelong_edit.editors.{name.replace('-', '_')}").RULE
    return found
