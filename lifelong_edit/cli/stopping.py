"""How a command is stopped from outside: SIGTERM as an exception, and, where there is a good moment to stop, a wish."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

_Handler = Callable[[int, FrameType | None], None]


class Terminated(BaseException):
    """SIGTERM has come. As KeyboardInterrupt, it is no Exception: nobody shall take it for a failure of theirs."""


@contextlib.contextmanager
def _not_ignored() -> Iterator[None]:
    """Send a signal once more that came where Python drops exceptions: in a finaliser, or a weak reference's callback.

    Later, by a thread: what were raised in the hook itself would be dropped as well.
    """
    before = sys.unraisablehook

    def hook(dropped: sys.UnraisableHookArgs) -> None:
        if not issubclass(dropped.exc_type, Terminated):
            before(dropped)
            return
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextlib.contextmanager
def _handling(handlers: dict[signal.Signals, _Handler]) -> Iterator[None]:
    """Handlers of signals, for a while; in a thread other than the main one Python allows none, and none is set."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        with _not_ignored():
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def terminable() -> contextlib.AbstractContextManager[None]:
    """SIGTERM ends what runs as Ctrl-C does: by an exception, so that everything is let go of in order."""
    return _handling({signal.SIGTERM: _terminate})


@contextlib.contextmanager
def stopping(tell: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C or SIGTERM has come, which then interrupts nothing; a second one does."""
    came: list[int] = []

    def wish(number: int, frame: FrameType | None) -> None:
        if came:
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated
        came.append(number)
        tell("stopping after the batch at hand; once more stops at once")

    with _handling({signal.SIGINT: wish, signal.SIGTERM: wish}):
        yield lambda: bool(came)
