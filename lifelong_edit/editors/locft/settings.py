"""The settings of breadth-first fine-tuning."""

from __future__ import annotations

from lifelong_edit.editors.tuning.settings import TuningSettings


class LocftSettings(TuningSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of `locft`. The defaults are those published for Llama-3-8B but for its layer, 22 of 32.

    For other models the layer is two thirds of the way up unless modules are named (21 of 32; published are 6 of 28 for
    Qwen2.5, and all of layer 23 of 32 for Mistral at a tenth of the rate).
    """

    editor: str = "locft"
    """The editing rule."""
    closing: bool = True
    """Whether the end of the text is taught behind each answer. A turn of a conversation always ends."""
