"""The format `transformers`: a folder that `from_pretrained` loads and that answers the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from lifelong_edit.models import LoadedModel
from lifelong_edit.models.quiet import quiet_transformers


def write_transformers(loaded: LoadedModel, shifts: Mapping[str, Tensor], folder: Path) -> None:
    """Write the model with weights W₀ + ΔW, its tokenizer and generation settings as a transformers folder.

    shifts: module name → ΔW (d_in, d_out) float32; what `loaded`'s own shifts are does not matter. Weights are
    safetensors in the dtype that the base model was loaded in. Raises OSError or SafetensorError.
    """
    with quiet_transformers():
        state = {**loaded.model.state_dict(), **loaded.edited_weights(shifts)}
        loaded.model.save_pretrained(folder, state_dict=state, safe_serialization=True)
        loaded.tokenizer.save_pretrained(folder)
