"""Facts chosen by what their fields hold: `subject=France`, `prompt~capital`, `since=2024-01-01`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lifelong_edit.errors import BadInputError, UsageError
from lifelong_edit.facts.dates import span_of
from lifelong_edit.facts.record import Fact

TEXTS = ("subject", "prompt", "target", "relation", "id", "source", "author", "date")
"""Fields of a fact that a condition may be about."""
STATE = "state"
"""What became of a fact; no field of its record."""
DATES = ("since", "until")
"""Bounds of when a fact came into force, both included, with all that they name: a year, a month, a week, a day."""
FIELDS = (*TEXTS, STATE, *DATES)

_CONDITION = re.compile(r"\s*(\w+)\s*([=~])(.*)", re.DOTALL)


@dataclass(frozen=True)
class Condition:
    """FIELD=VALUE or FIELD~TEXT. Case and blanks at the ends do not matter; without a value: the field is not given."""

    field: str
    contains: bool
    value: str

    def holds(self, fact: Fact, state: str) -> bool:
        """Whether a fact, whose state is given, is what the condition asks for."""
        if self.field in DATES:
            return fact.date is not None and self._within(fact.date)
        found = (state if self.field == STATE else getattr(fact, self.field) or "").strip().casefold()
        return self.value.casefold() in found if self.contains else found == self.value.casefold()

    def _within(self, date: str) -> bool:
        first, bound = span_of(date)[0], span_of(self.value)
        return first >= bound[0] if self.field == "since" else first < max(bound[1], bound[0] + 1)


def parse_conditions(texts: Iterable[str]) -> list[Condition]:
    """Conditions from text. Raises UsageError, naming the fields there are, where one is no condition."""
    found = []
    for text in texts:
        match = _CONDITION.fullmatch(text)
        if match is None or match[1] not in FIELDS:
            raise UsageError(
                f"found the condition {text[:80]!r}; expected FIELD=VALUE or FIELD~TEXT with one of {', '.join(FIELDS)}"
            )
        field, sign, value = match[1], match[2], match[3].strip()
        if field in DATES:
            _require_date(field, sign, value)
        found.append(Condition(field, sign == "~", value))
    return found


def all_hold(conditions: Sequence[Condition], fact: Fact, state: str) -> bool:
    """Whether a fact, whose state is given, is what all conditions ask for."""
    return all(condition.holds(fact, state) for condition in conditions)


def _require_date(field: str, sign: str, value: str) -> None:
    try:
        if sign != "=":
            raise ValueError(sign)
        span_of(value)
    except (ValueError, BadInputError):
        raise UsageError(
            f"found the condition {(field + sign + value)[:80]!r}; expected {field}=DATE in ISO 8601, as in 2026-03-01 "
            "(2026, 2026-03 and 2026-W10 will do)"
        ) from None
