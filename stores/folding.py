"""ΔW: none of it, all of it, and a step more."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lifelong_edit.stores.tensors import Array, FloatArray, Shift, decode_tensors, encode_tensors, materialise

Weights = dict[str, FloatArray]
"""ΔW by module, (d_in, d_out) float32."""
Shapes = Mapping[str, tuple[int, int]]


WHOLE_UP_TO = 64 * 2**20
"""Bytes of ΔW up to which it is stored whole beside the steps, whatever it takes. Beyond, only where the shifts that
lead to it from the last state stored whole take as many."""


def zeros(shapes: Shapes) -> Weights:
    """ΔW of the base."""
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def add_shifts(weights: Mapping[str, FloatArray], shift: Mapping[str, Shift]) -> Weights:
    """ΔW after a step: ΔW + S per module, in float32, of one matrix at a time. The one place where a step is added."""
    return {name: array + materialise(shift[name]) if name in shift else array for name, array in weights.items()}


def encode_whole(weights: Mapping[str, FloatArray], half: bool = False) -> bytes:
    """ΔW whole as bytes. half: matrices that 16 bits hold exactly, as after a solve over all facts, are kept so."""

    def kept(array: FloatArray) -> Array:
        with np.errstate(over="ignore"):
            short = array.astype(np.float16)
        return short if np.array_equal(short.astype(np.float32), array) else array

    return encode_tensors({name: kept(array) for name, array in weights.items()} if half else weights)


def decode_whole(data: bytes, what: str) -> Weights:
    """ΔW from a blob that holds it whole. Raises StoreDamagedError, naming `what`, where the bytes are none."""
    return {name: array.astype(np.float32) for name, array in decode_tensors(data, what, views=True).items()}
