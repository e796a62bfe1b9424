"""Dates as facts give them: which of two is later, as far as both say."""

from __future__ import annotations

import calendar
import datetime
import re

from lifelong_edit.errors import BadInputError

Span = tuple[int, int]
"""From the first moment up to the first one after it, in microseconds since the year 1, UTC."""

_DAY = 86_400_000_000
_MONTH = re.compile(r"[0-9]{4}-[0-9]{2}")
_WEEK = re.compile(r"[0-9]{4}-?W[0-9]{2}")
_YEAR = re.compile(r"[0-9]{4}")


def span_of(date: str) -> Span:
    """What a date covers: a year, a month, a week or a day all of it, a time that moment alone.

    ISO 8601: `2026`, `2026-03`, `2026-W10`, `2026-03-01`, `2026-03-01T12:30:00+01:00`; a time without an offset is
    taken as UTC. Raises `BadInputError` (without file and line) for anything else.
    """
    try:
        return _span_of(date)
    except ValueError:
        raise BadInputError(
            f"found `date` {date[:40]!r}, expected ISO 8601 as in 2026-03-01 "
            "(2026, 2026-03 and 2026-W10 will do); correct it"
        ) from None


def is_later(date: str, than: str) -> bool:
    """Whether one date begins when the other is over: neither 2026 nor 2026-03-01 is later than the other."""
    one, other = span_of(date), span_of(than)
    return one[0] >= other[1] and one[0] > other[0]


def date_text(value: datetime.date) -> str:
    """A date of a table as ISO 8601 has it. A moment at midnight without an offset is a day: tables know no others."""
    if isinstance(value, datetime.datetime) and value.time() == datetime.time() and value.tzinfo is None:
        return value.date().isoformat()
    return value.isoformat()


def _span_of(date: str) -> Span:
    if _YEAR.fullmatch(date):
        return _days(datetime.date(int(date), 1, 1), datetime.date(int(date), 12, 31))
    if _MONTH.fullmatch(date):
        first = datetime.date.fromisoformat(f"{date}-01")
        return _days(first, first.replace(day=calendar.monthrange(first.year, first.month)[1]))
    if _WEEK.fullmatch(date):
        first = datetime.date.fromisoformat(date)
        return _days(first, first, 7)
    try:
        day = datetime.date.fromisoformat(date)
    except ValueError:
        moment = _moment(datetime.datetime.fromisoformat(date))
        return moment, moment
    return _days(day, day)


def _days(first: datetime.date, last: datetime.date, more: int = 1) -> Span:
    return first.toordinal() * _DAY, (last.toordinal() + more) * _DAY


def _moment(found: datetime.datetime) -> int:
    # In whole numbers: near the first and the last year a datetime cannot be moved to UTC.
    since = found.replace(tzinfo=None) - datetime.datetime.combine(found.date(), datetime.time())
    offset = found.utcoffset() or datetime.timedelta()
    return found.toordinal() * _DAY + (since - offset) // datetime.timedelta(microseconds=1)
