"""The settings of UltraEdit with whitened gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from lifelong_edit.editors.ridge.settings import Ask, RidgeSettings
from lifelong_edit.editors.ultraedit.settings import UltraSettings
from lifelong_edit.settings import Count, Positive


class StableSettings(UltraSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of `stableedit`, beside those of `ultraedit`; as published but for the step, of which the same holds."""

    order: ClassVar[tuple[str, ...]] = (*UltraSettings.order, "ridge", "floor", "warm_up")
    at_rest: ClassVar[Mapping[str, tuple[str | int | None, ...]]] = RidgeSettings.at_rest
    before: ClassVar[Mapping[str, object]] = {}

    editor: str = "stableedit"
    """The editing rule."""
    ask: Ask = "published"
    """`published`: one pass over the batch, nothing preserved, centred gradients. `joint`: this project's solve, where
    they are not centred."""
    phrasings: Count = 0
    """How many rephrases of a fact become rows of the solve beside its prompt."""
    ridge: Positive = 10.0
    """The ridge λ of the solve, where `log_ridge` does not say another."""
    floor: Positive = 1e-6
    """The least eigenvalue that the covariance of gradients is taken to have."""
    warm_up: str | None = None
    """A file of facts whose keys and gradients the moments begin with, in any shape that `stream` reads. It is read at
    `init` alone, and nothing of these facts is taught."""
