"""When it is time to solve again: what each policy looks at, and what it is called."""

from __future__ import annotations

import pytest

from lifelong_edit.errors import UsageError
from lifelong_edit.policies import (
    EveryNSteps,
    Forecast,
    Geometric,
    Never,
    ReconsolidationPolicy,
    Retention,
    Standing,
    reconsolidation_policy,
)


def unasked() -> float:
    raise AssertionError("only the policy that is about retention may measure it")


def due_at(policy: ReconsolidationPolicy, edits: int) -> list[int]:
    """The numbers of edit steps at which a policy is due, each attempt made at once."""
    found, last = [], 0
    for now in range(edits + 1):
        if policy.due(Standing(now - last, last, unasked)):
            found.append(now)
            last = now
    return found


def test_by_number_of_steps() -> None:
    assert due_at(Never(), 1000) == []
    assert due_at(EveryNSteps(3), 10) == [3, 6, 9]
    assert due_at(EveryNSteps(1), 3) == [1, 2, 3]
    assert due_at(Geometric(), 70) == [4, 8, 16, 32, 64]
    # One that was late is made up for.
    assert EveryNSteps(3).due(Standing(7, 0, unasked))
    assert Geometric().due(Standing(9, 2, unasked))
    with pytest.raises(UsageError):
        EveryNSteps(0)


def test_by_retention() -> None:
    policy = Retention(0.9)
    assert policy.due(Standing(1, 0, lambda: 0.89))
    assert not policy.due(Standing(1, 0, lambda: 0.9))
    assert not policy.due(Standing(0, 5, unasked)), "nothing was edited since the last attempt"
    for bound in (0.0, 1.01, -1.0, float("nan")):
        with pytest.raises(UsageError):
            Retention(bound)


def test_retention_is_measured_against_what_could_be_reached() -> None:
    """Facts that never took would else ask for a reconsolidation after every edit."""
    policy = Retention(0.9)
    assert not policy.due(Standing(1, 4, lambda: 0.79, reached=0.8)), "0.9 of 0.8 is kept"
    assert policy.due(Standing(1, 4, lambda: 0.71, reached=0.8))
    assert policy.due(Standing(1, 4, lambda: 0.89, reached=0.95)), "no more is asked for than the bound"
    assert not policy.due(Standing(1, 4, lambda: 0.9, reached=0.95))


def test_by_forecast() -> None:
    policy = Forecast(0.1)
    assert policy.due(Standing(1, 0, unasked, lambda: 0.11))
    assert not policy.due(Standing(1, 0, unasked, lambda: 0.1))
    assert not policy.due(Standing(1, 0, unasked)), "no batch is at hand"
    assert not policy.due(Standing(0, 5, unasked, unasked)), "nothing was edited since the last attempt"
    for bound in (0.0, 1.01, -1.0, float("nan")):
        with pytest.raises(UsageError):
            Forecast(bound)
    assert policy.looks_ahead
    assert not any(other.looks_ahead for other in (Never(), EveryNSteps(3), Geometric(), Retention(0.9)))


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("never", Never()),
        ("every:7", EveryNSteps(7)),
        ("geometric", Geometric()),
        ("retention:0.95", Retention(0.95)),
        ("forecast:0.02", Forecast(0.02)),
        (" geometric ", Geometric()),
    ],
)
def test_policy_by_name(text: str, policy: ReconsolidationPolicy) -> None:
    assert reconsolidation_policy(text) == policy
    assert str(policy) == text.strip()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "always",
        "every",
        "every:",
        "every:x",
        "every:1.5",
        "never:1",
        "geometric:4",
        "retention:",
        "forecast:",
        "forecast",
    ],
)
def test_unknown_policy_names_the_known_ones(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        reconsolidation_policy(text)
    assert repr(text) in str(caught.value)
    assert "never, every:N (a whole number), geometric, retention:SHARE or forecast:BOUND" in str(caught.value)


@pytest.mark.parametrize(
    "text", ["every:0", "every:-2", "retention:0", "retention:2", "retention:nan", "forecast:0", "forecast:1.5"]
)
def test_number_out_of_range(text: str) -> None:
    with pytest.raises(UsageError, match="expected"):
        reconsolidation_policy(text)
