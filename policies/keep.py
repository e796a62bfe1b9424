"""Which states are stored whole, so that going back to them needs no rebuilding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from lifelong_edit.errors import UsageError


class KeepPolicy(Protocol):
    """Decides at each step."""

    def snapshot(self, since: int) -> bool:
        """Whether this step's ΔW is stored whole.

        since: steps along the state's own line since the last state that is stored whole, this one included.
        """
        ...


@dataclass(frozen=True)
class EveryN:
    """A snapshot each `n` steps: going back folds at most `n` - 1 shifts."""

    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UsageError(f"found a snapshot every {self.n} steps, expected at least 1")

    def snapshot(self, since: int) -> bool:
        """Whether `n` steps have passed."""
        return since >= self.n
