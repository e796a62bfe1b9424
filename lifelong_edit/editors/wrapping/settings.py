"""The settings that wrappers add to those of the rule inside."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from lifelong_edit.settings import AtLeastOne, Positive, Ranged

Share = Annotated[float, Meta(gt=0, le=1)]
AboveOne = Annotated[float, Meta(gt=1)]


class RectSettings(Ranged, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of `rect+RULE`, beside those of the rule."""

    keep: Share = 0.2
    """The share of a matrix's entries that a step may change: those whose change is the greatest relative to the base
    weight. 0.2 was published for ROME, 0.4 is what AlphaEdit's comparison took."""


class PruneSettings(Ranged, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of `prune+RULE`, beside those of the rule."""

    log_base: AboveOne = 1.2
    """The base of the logarithm by which singular values above the bound are made smaller: the greater, the smaller.
    Published are e, 2, 1.5 and 1.2."""
    bound: Positive = 1.0
    """Which singular values are too great: those above this multiple of the greatest one of the base matrix."""


class SimieSettings(Ranged, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of `simie+RULE`, beside those of the rule."""

    anchor: Positive | None = None
    """The ridge λ that holds the weights at the base's, absolute; published is 10,000. None: trace(C₀)/d_in, the mean
    square of an input over ordinary text."""


class NasSettings(Ranged, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of `nas+RULE`, beside those of the rule."""

    length: Positive | None = None
    """The length of all hidden states that are asked for. None: the mean of the pilots'."""
    pilots: AtLeastOne = 100
    """How many facts, the first that are taught, are searched for in the base model to measure that mean; published
    are about 1,000 beforehand."""
    too_long: AboveOne = 2.0
    """A fact whose hidden state is longer than this multiple of it asks for nothing, and is reported."""
