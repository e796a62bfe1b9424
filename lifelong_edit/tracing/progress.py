"""How far a long measurement is, and how long it will still take."""

from __future__ import annotations

import time
from collections.abc import Callable

SECONDS = 5.0
"""How often a long measurement says how far it is; one that is done sooner says nothing."""


class Progress:
    """Tells, now and then, how much of a known amount is done.

    say: told in a few words; None for nobody. what: what is being done. total: how many `units` there are.
    """

    def __init__(self, say: Callable[[str], None] | None, what: str, total: int, units: str) -> None:
        self._say, self._what, self._total, self._units = say, what, total, units
        self._began = self._told = time.monotonic()

    def at(self, done: int) -> None:
        """So many are done."""
        now = time.monotonic()
        if self._say is None or done <= 0 or now - self._told <= SECONDS:
            return
        self._told = now
        left = (now - self._began) * (self._total - done) / done
        more = f", about {span(left)} left" if done < self._total else ""
        self._say(f"{self._what}: {done} of {self._total} {self._units}{more}")


def span(seconds: float) -> str:
    """A time in words, no finer than it can be known: "40 s", "3 min", "2.5 h"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
