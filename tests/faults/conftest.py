"""The small stores of the store tests, and the ones on a tiny model of the command line's."""

from __future__ import annotations

from tests.cli.conftest import _empty_template, _template, empty_store, making, news, run, store
from tests.stores.conftest import add_step, killed_everywhere, make_store, run_python

__all__ = [
    "_empty_template",
    "_template",
    "add_step",
    "empty_store",
    "killed_everywhere",
    "make_store",
    "making",
    "news",
    "run",
    "run_python",
    "store",
]
