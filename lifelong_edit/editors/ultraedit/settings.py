"""The settings of the rules that normalise keys and gradients by running moments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from lifelong_edit.editors.ridge.settings import RidgeSettings
from lifelong_edit.settings import Positive

By = Literal["module", "shape"]


class UltraSettings(RidgeSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of `ultraedit`, beside those of the ridge rules.

    The moments are as published. The step is not: 1e-6 was published for models of 7B parameters and more, and hardly
    moves a small one; `--set eta=1e-6` has it.
    """

    order: ClassVar[tuple[str, ...]] = (*RidgeSettings.order, "moments", "relative_step")
    at_rest: ClassVar[Mapping[str, tuple[str | int | None, ...]]] = {
        **RidgeSettings.at_rest,
        "moments": ("module",),
        "relative_step": (None,),
    }
    before: ClassVar[Mapping[str, object]] = {"moments": "module", "relative_step": None}

    editor: str = "ultraedit"
    """The editing rule."""
    moments: By = "shape"
    """Whose rows one normaliser takes together: those of all matrices of one `shape`, as published, or of each `module`
    alone, as in stores that are older than this setting."""
    relative_step: Positive | None = 0.3
    """The step where `eta` is not given: what a fact with keys and gradients of the usual size asks of each output of a
    matrix, as a share of the root mean square of its outputs at ordinary text. None: η is 1e-6, as published and in
    stores that are older than this setting."""
