"""transformers and accelerate without progress bars and load reports, for as long as one of our own calls lasts."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

from transformers.utils import logging as transformers_logging


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Within the context transformers and accelerate say nothing below an error; afterwards they are set as before."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    spreading = logging.getLogger("accelerate")
    level = spreading.level
    spreading.setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        spreading.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def without_bars() -> Iterator[None]:
    """Within the context nothing reaches standard error: some bars of transformers know no switch."""
    with redirect_stderr(io.StringIO()):
        yield
