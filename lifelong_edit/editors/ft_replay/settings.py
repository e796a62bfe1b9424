"""The settings of fine-tuning with replay."""

from __future__ import annotations

from lifelong_edit.editors.tries import Tries
from lifelong_edit.editors.tuning.settings import DEPTHS, GRID, TuningSettings
from lifelong_edit.settings import Count, NotNegative

TRIES = Tries(
    grid={**GRID, "replay": (0, 10, 25, 50, 100), "preserved_weight": (0.3, 1.0, 3.0, 10.0)},
    relative=frozenset({"relative_rate"}),
    depths=DEPTHS,
)
"""What may be tried for it."""


class ReplaySettings(TuningSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of `ft-replay`: those of `ft`, and what each step is mixed with."""

    editor: str = "ft-replay"
    """The editing rule."""
    replay: Count = 50
    """How many earlier facts, of those in force, are drawn for each step."""
    preserved: Count = 50
    """How many preserved prompts are drawn for each step. A store without any has prompts derived from the facts."""
    preserved_weight: NotNegative = 1.0
    """Weight of the preserved prompts' mean divergence from the base model against the mean loss of the facts."""
