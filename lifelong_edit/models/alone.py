"""A state as a model that needs no hooks: what can leave, for programs that know nothing of rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor

from lifelong_edit.errors import UsageError
from lifelong_edit.models.loaded import LoadedModel
from lifelong_edit.models.overlay import Overlay, Putting, Shifts


@runtime_checkable
class Alone(Protocol):
    """An overlay that is more than shifted weights, and can yet be a model without hooks."""

    def as_model(self, loaded: LoadedModel) -> LoadedModel:
        """A model of its own, which shares nothing with the base, as the overlay makes it."""


def without_hooks(loaded: LoadedModel, overlay: Overlay) -> tuple[LoadedModel, Mapping[str, Tensor]]:
    """A state as weights alone: a model, and ΔW by module that come on top of it.

    The base itself where an overlay is shifted weights, else the model that the overlay makes of it. Raises UsageError
    for an overlay that cannot be one: its weights alone would be another model, silently.
    """
    if isinstance(overlay, Shifts):
        return loaded, overlay.shifts
    if isinstance(overlay, Alone):
        return overlay.as_model(loaded), {}
    how = "what is put before questions" if isinstance(overlay, Putting) else "hooks"
    raise UsageError(
        f"this state shows in the model by {how} ({type(overlay).__name__}), expected shifted weights alone, all that "
        "can leave as a model; ask it in its store, with `ask`, or within `View.standing`"
    )
