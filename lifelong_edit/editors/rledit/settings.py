"""The settings of RLEdit."""

from __future__ import annotations

from typing import ClassVar, Literal

from lifelong_edit.editors.ridge.settings import Ask, RidgeSettings
from lifelong_edit.settings import Count


class RLSettings(RidgeSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of `rledit`, beside those of the ridge rules."""

    order: ClassVar[tuple[str, ...]] = (*RidgeSettings.order, "training")

    editor: str = "rledit"
    """The editing rule."""
    ask: Ask = "published"
    """`published`: one pass over the batch, nothing preserved. `joint`: this project's solve, where a row without
    gradient asks for nothing."""
    phrasings: Count = 0
    """How many rephrases of a fact become rows of the solve beside its prompt."""
    training: Literal["published", "trained"] = "trained"
    """How `train` makes its network. `trained`: step after step for as long as it is given. `published`: one step of
    the optimiser after one long episode, so that what is learned is the normaliser."""
