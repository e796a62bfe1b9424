"""Many answer at once; whoever changes the model is alone. No torch."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from lifelong_edit.errors import UsageError


class Turnstile:
    """Requests pass side by side; a change waits until those that passed are through, and keeps new ones waiting.

    A thread that is inside may pass again, whoever waits: a request within a request belongs to the outer one.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._inside: Counter[int] = Counter()
        self._waiting, self._changing = 0, False

    @contextmanager
    def request(self) -> Iterator[None]:
        """Within the context nothing changes."""
        me = threading.get_ident()
        with self._condition:
            self._condition.wait_for(lambda: bool(self._inside[me]) or not (self._waiting or self._changing))
            self._inside[me] += 1
        try:
            yield
        finally:
            with self._condition:
                self._inside[me] -= 1
                if not self._inside[me]:
                    del self._inside[me]
                self._condition.notify_all()

    @contextmanager
    def change(self) -> Iterator[None]:
        """Within the context nobody is inside. Raises UsageError from within a request, which would wait for itself."""
        with self._condition:
            if self._inside[threading.get_ident()]:
                raise UsageError(
                    "found a change of the state within a request, expected it between two; let it end first"
                )
            self._waiting += 1
            try:
                self._condition.wait_for(lambda: not self._changing and not any(self._inside.values()))
            finally:
                self._waiting -= 1
            self._changing, self._inside = True, Counter()
        try:
            yield
        finally:
            with self._condition:
                self._changing = False
                self._condition.notify_all()
