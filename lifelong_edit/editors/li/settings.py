"""The settings of interpolated fine-tuning."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from lifelong_edit.editors.tuning.settings import TuningSettings
from lifelong_edit.settings import AtLeastOne

Share = Annotated[float, Meta(gt=0, le=1)]


class LiSettings(TuningSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of `li`: those of the rule that it interpolates, and how far."""

    editor: str = "li"
    """The editing rule."""
    inner: Literal["ft", "ft-replay", "locft"] = "locft"
    """The rule of which the result is interpolated, with the settings of this one, all others at their defaults."""
    closing: bool = True
    """Whether the end of the text is taught behind each answer. A turn of a conversation always ends."""
    alpha: Share | None = None
    """The share of what the inner rule changes that is kept. None: chosen at each step, on facts and preserved
    prompts."""
    grid: AtLeastOne = 10
    """Of how many shares, evenly apart and up to all of it, one is chosen."""
    validation: AtLeastOne = 50
    """On how many facts, drawn of those that are taught, and on how many preserved prompts."""
