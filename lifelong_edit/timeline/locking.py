"""One thread at a time: what several threads ask of one timeline is done one after the other."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar, cast

Method = TypeVar("Method", bound=Callable[..., Any])
Lock = AbstractContextManager[bool]
"""A re-entrant lock: a method that holds it may call another that takes it."""


def locked(method: Method) -> Method:
    """A method, or a function of a timeline, that holds the `lock` of its first argument while it runs."""

    @functools.wraps(method)
    def hold(owner: Any, *args: Any, **options: Any) -> Any:
        with owner.lock:
            return method(owner, *args, **options)

    return cast(Method, hold)
