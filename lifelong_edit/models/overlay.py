"""What an editing rule's state makes of a base model: shifted weights, attached hooks, or both."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, final, runtime_checkable

from torch import Tensor

from lifelong_edit.errors import UsageError

if TYPE_CHECKING:
    from lifelong_edit.models.loaded import LoadedModel


class Overlay(Protocol):
    """How a state shows in a model, whole: overlays replace each other and never add up."""

    @property
    def shifts(self) -> Mapping[str, Tensor]:
        """ΔW by module, (d_in, d_out) float32; empty for rules that leave the weights alone."""

    def attach(self, model: Any) -> AbstractContextManager[None]:
        """Within the context the transformers model has the rule's hooks; afterwards none of them."""


@final
@dataclass(frozen=True)
class Shifts:
    """The overlay of a rule that only shifts weights. Any other one may attach hooks."""

    shifts: Mapping[str, Tensor] = field(default_factory=dict)

    def attach(self, model: Any) -> AbstractContextManager[None]:
        """Nothing to attach."""
        return nullcontext()


BASE = Shifts()
"""The base model."""


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
    raise UsageError(
        f"this state shows in the model by hooks ({type(overlay).__name__}), expected shifted weights alone, all that "
        "can leave as a model; ask it in its store, with `ask`, or within `View.standing`"
    )
