"""Facts chosen by their fields."""

from __future__ import annotations

import pytest

from lifelong_edit.errors import UsageError
from lifelong_edit.facts import Fact
from lifelong_edit.facts.where import FIELDS, all_hold, parse_conditions

FACT = Fact(
    subject="France",
    prompt="The capital of France is",
    target="Paris",
    relation="capital",
    source="gazette 3/2019",
    date="2024-08-17",
)
UNDATED = Fact(subject="Peru", prompt="Peru lies in", target="Asia", author="Ada", id="p=1")


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        ((), "both"),
        (("subject=france",), "first"),
        (("subject = France ",), "first"),
        (("subject=Fran",), "none"),
        (("subject~RAN",), "first"),
        (("prompt~peru",), "second"),
        (("target=Paris", "relation=capital"), "first"),
        (("target=Paris", "relation=river"), "none"),
        (("source~gazette",), "first"),
        (("source=",), "second"),
        (("author=ada",), "second"),
        (("id=p=1",), "second"),
        (("date=2024-08-17",), "first"),
        (("date~2024-08",), "first"),
        (("date=",), "second"),
        (("since=2024-08-17",), "first"),
        (("since=2024-08-18",), "none"),
        (("until=2024-08-17",), "first"),
        (("until=2024-08-16",), "none"),
        (("since=2024-08-01", "until=2024-08-31"), "first"),
        (("since=2024-08-17T00:00:01",), "none"),
        (("state=live",), "both"),
        (("state=retracted",), "none"),
    ],
)
def test_conditions(texts: tuple[str, ...], found: str) -> None:
    conditions = parse_conditions(texts)
    chosen = [all_hold(conditions, fact, "live") for fact in (FACT, UNDATED)]
    assert chosen == {"both": [True, True], "first": [True, False], "second": [False, True], "none": [False] * 2}[found]


@pytest.mark.parametrize(
    ("date", "condition", "holds"),
    [
        ("2024-08-17T23:59:59", "until=2024-08-17", True),
        ("2024-08-18", "until=2024-08-17", False),
        ("2024-08-17T01:00:00+02:00", "until=2024-08-16", True),
        ("2024-08-17T01:00:00+02:00", "since=2024-08-17", False),
        ("2024-08-17T12:00:00", "until=2024-08-17T11:00:00", False),
        ("20240817", "since=2024-08-17", True),
        ("2024", "since=2024-01-01", True),
        ("2024", "since=2024-02", False),
        ("2024-08", "until=2024-08-17", True),
        ("2024-09", "until=2024-08", False),
        ("2024-08-31", "until=2024-08", True),
        ("2024-12-31T23:59:59", "until=2024", True),
        ("2024-W33", "since=2024-08-12", True),
        ("2024-08-17T11:00:00", "until=2024-08-17T11:00:00", True),
        ("2024-08-17T12:00:00", "until=20240817", True),
    ],
)
def test_dates_are_moments(date: str, condition: str, holds: bool) -> None:
    """A day without a time is all of it; a time without an offset is UTC."""
    fact = Fact(subject="a", prompt="b", target="c", date=date)
    assert all_hold(parse_conditions([condition]), fact, "live") == holds


@pytest.mark.parametrize("text", ["", "subject", "subjekt=x", "=x", "subject>x", "since<2024-01-01", "rephrases=x"])
def test_what_is_no_condition_names_the_fields(text: str) -> None:
    with pytest.raises(UsageError, match=r"found the condition .*; expected FIELD=VALUE or FIELD~TEXT") as caught:
        parse_conditions(["subject=x", text])
    assert ", ".join(FIELDS) in str(caught.value)


@pytest.mark.parametrize("text", ["since=yesterday", "until=", "since~2024", "until=2024-13-01"])
def test_what_is_no_date_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"expected (since|until)=DATE in ISO 8601"):
        parse_conditions([text])
