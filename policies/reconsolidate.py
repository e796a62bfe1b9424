"""When to solve again over all live facts together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from lifelong_edit.errors import UsageError

FORMS = "never, every:N (a whole number), geometric, retention:SHARE or forecast:BOUND (numbers as 0.95)"
"""What `reconsolidation_policy` knows."""


@dataclass(frozen=True)
class Standing:
    """What a policy is shown. Counted along the state's own line, so that a rollback takes its steps out.

    An attempt is a reconsolidation, or one that was refused: the same would be refused again.
    """

    edits: int
    """Edit steps since the last attempt, or since the base."""
    before: int
    """Edit steps up to the last attempt; 0 where there was none."""
    retention: Callable[[], float]
    """Measures the share of right answers on a sample of the live facts: it costs the model's time."""
    forecast: Callable[[], float] | None = None
    """Forecasts the share of the live facts that will have been forgotten since the last attempt, once the coming
    batch is edited. None where no batch is at hand: after an edit."""
    reached: float = 1.0
    """The retention that the last attempt left behind; 1 where there was none."""


class ReconsolidationPolicy(Protocol):
    """Decides after each edit; as text it is the form that `reconsolidation_policy` reads."""

    @property
    def looks_ahead(self) -> bool:
        """Whether it decides before each batch that is to be edited instead: there `Standing.forecast` is known."""
        ...

    def due(self, standing: Standing) -> bool:
        """Whether to reconsolidate now. A function of the state alone: a run that was killed must decide the same."""
        ...


@dataclass(frozen=True)
class Never:
    """Only when asked for."""

    looks_ahead = False

    def __str__(self) -> str:
        return "never"

    def due(self, standing: Standing) -> bool:
        """Always False."""
        return False


@dataclass(frozen=True)
class EveryNSteps:
    """After each `n` edit steps."""

    n: int
    looks_ahead = False

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UsageError(f"found every:{self.n}, expected a number of steps of at least 1")

    def __str__(self) -> str:
        return f"every:{self.n}"

    def due(self, standing: Standing) -> bool:
        """Whether `n` edit steps have passed."""
        return standing.edits >= self.n


@dataclass(frozen=True)
class Geometric:
    """At 4, 8, 16, 32 ... edit steps: all of them together cost about as much as the last one twice."""

    first: int = 4
    looks_ahead = False

    def __str__(self) -> str:
        return "geometric"

    def due(self, standing: Standing) -> bool:
        """Whether the steps since the last attempt are as many as those up to it."""
        return standing.edits >= max(self.first, standing.before)


@dataclass(frozen=True)
class Retention:
    """As soon as a smaller share than `bound` of a sample of the live facts is answered right.

    Where the last attempt already left less than that, some facts will not be taught however often they are solved for:
    then as soon as less than `bound` of what it left is.
    """

    bound: float
    looks_ahead = False

    def __post_init__(self) -> None:
        if not 0 < self.bound <= 1:
            raise UsageError(f"found retention:{self.bound:g}, expected a share of more than 0 and at most 1")

    def __str__(self) -> str:
        return f"retention:{self.bound:g}"

    def due(self, standing: Standing) -> bool:
        """Whether retention has fallen; not asked where nothing was edited since the last attempt."""
        bound = self.bound if standing.reached >= self.bound else self.bound * standing.reached
        return standing.edits > 0 and standing.retention() < bound


@dataclass(frozen=True)
class Forecast:
    """Before the batch with which more than `bound` of the live facts would be forgotten since the last attempt.

    The share is a sum: what was forecast of each edit since then, and of the coming batch. A batch's own figure does
    not fall when all facts are solved again, since it depends on keys that never change; the sum does.
    """

    bound: float
    looks_ahead = True

    def __post_init__(self) -> None:
        if not 0 < self.bound <= 1:
            raise UsageError(f"found forecast:{self.bound:g}, expected a share of more than 0 and at most 1")

    def __str__(self) -> str:
        return f"forecast:{self.bound:g}"

    def due(self, standing: Standing) -> bool:
        """Whether too much would be forgotten; never twice without an edit in between."""
        return standing.edits > 0 and standing.forecast is not None and standing.forecast() > self.bound


def reconsolidation_policy(text: str) -> ReconsolidationPolicy:
    """The policy that a text names, one of FORMS. Raises `UsageError` for any other text."""
    name, colon, value = text.strip().partition(":")
    try:
        if not colon and name in ("never", "geometric"):
            return Never() if name == "never" else Geometric()
        if colon and name == "every":
            return EveryNSteps(int(value))
        if colon and name == "retention":
            return Retention(float(value))
        if colon and name == "forecast":
            return Forecast(float(value))
    except ValueError:
        pass  # not a number: said below
    raise UsageError(f"found the reconsolidation policy {text!r}, expected one of {FORMS}")
