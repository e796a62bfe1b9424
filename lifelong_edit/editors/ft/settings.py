"""The settings of fine-tuning batch by batch."""

from __future__ import annotations

from lifelong_edit.editors.tuning.settings import TuningSettings


class FtSettings(TuningSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of `ft`. The defaults are those of FT-M for models of 7B parameters.

    For other models the layer is two thirds of the way up unless modules are named, and the rate best given as
    `relative_rate`.
    """

    editor: str = "ft"
    """The editing rule."""
