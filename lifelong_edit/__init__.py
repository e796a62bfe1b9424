"""Keep a deployed language model's knowledge up to date, for years, without retraining it.

The public surface: `Timeline`, the `Fact`s that go into it, and the `Settings` that it is made with.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lifelong_edit.editors.ridge.settings import Settings
    from lifelong_edit.facts import Fact
    from lifelong_edit.serving.attaching import attach
    from lifelong_edit.timeline import Timeline

    __version__: str

__all__ = ["Fact", "Settings", "Timeline", "__version__", "attach"]

_HOMES = {
    "Fact": "lifelong_edit.facts",
    "Settings": "lifelong_edit.editors.ridge.settings",
    "Timeline": "lifelong_edit.timeline",
    "attach": "lifelong_edit.serving.attaching",
}


def __getattr__(name: str) -> object:
    # Imported when asked for: whoever needs one module of the package pays for that one.
    if name == "__version__":
        return version("lifelong-edit")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)
