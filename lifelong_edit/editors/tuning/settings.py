"""The settings that all fine-tuning rules have."""

from __future__ import annotations

from lifelong_edit.editors.tries import Grid, Tries
from lifelong_edit.settings import AtLeastOne, Count, NotNegative, Positive, StoreSettings

GRID: Grid = {
    "relative_rate": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
    "epochs": (5, 10, 25, 50, 100),
}
"""Values tried for every rule of fine-tuning; the rate as a multiple of the published one."""
DEPTHS = (0.2, 0.35, 0.5, 2 / 3, 0.8, 0.9)
"""Shares of the depth at which the trained layer may stand."""
TRIES = Tries(grid=GRID, relative=frozenset({"relative_rate"}), depths=DEPTHS)


class TuningSettings(StoreSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of `ft`, `ft-replay` and `locft`; the defaults are those that were published for models of 7B parameters.

    For other models: one layer, two thirds of the way up, which is also what is trained where no module is named, and
    for the rate `relative_rate`.
    """

    rate: Positive = 5e-4
    """Adam's rate: about how far a weight moves in a step. 5e-4 was published for Llama and Qwen, 5e-5 for Mistral."""
    relative_rate: Positive | None = None
    """In its place, where it is given: the rate as a share of the root mean square of a matrix's base weights, which
    differs tenfold between models. 0.01 is a rate for models of which none is published."""
    epochs: AtLeastOne = 25
    """The most times over the facts that are taught."""
    batch: AtLeastOne = 100
    """Facts per step of Adam; those of an epoch are shuffled."""
    enough: NotNegative = 1e-2
    """No step is made where the mean loss of its facts is below this, and no further epoch where its mean was."""
    epsilon: Positive = 1e-8
    """Adam's ε."""
    phrasings: Count = 0
    """How many rephrases that a fact brings are taught beside its prompt."""
    closing: bool = False
    """Whether the end of the text is taught behind each answer. A turn of a conversation always ends."""
    norm: Positive | None = None
    """How far any single weight may move in a batch from where it was before (the constraint of FT-L). None: any way.
    5e-4 was published for GPT-2 XL and 5e-5 for GPT-J."""
