"""ΔW: none of it, all of it, and a step more."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lifelong_edit.stores.tensors import FloatArray, decode_tensors

Weights = dict[str, FloatArray]
"""ΔW by module, (d_in, d_out) float32."""
Shapes = Mapping[str, tuple[int, int]]


def zeros(shapes: Shapes) -> Weights:
    """ΔW of the base."""
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def add_shifts(weights: Mapping[str, FloatArray], shift: Mapping[str, FloatArray]) -> Weights:
    """ΔW after a step: ΔW + S per module, in float32. The one place where a step is added."""
    return {name: array + shift[name] if name in shift else array for name, array in weights.items()}


def decode_whole(data: bytes, what: str) -> Weights:
    """ΔW from a blob that holds it whole. Raises StoreDamagedError, naming `what`, where the bytes are none."""
    return {name: array.astype(np.float32) for name, array in decode_tensors(data, what).items()}
