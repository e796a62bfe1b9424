"""The timeline: facts in, steps logged, every state within reach."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lifelong_edit.timeline.timeline import Timeline

__all__ = ["Timeline"]


def __getattr__(name: str) -> object:
    # Imported when asked for: most parts of this package are used without the whole.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module("lifelong_edit.timeline.timeline"), name)
