"""Arrays to bytes and back, and the one function that turns a stored shift into a matrix."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from lifelong_edit.errors import StepRefusedError, StoreDamagedError, StoreError, said
from lifelong_edit.stores.digests import DIGEST_SIZE

Array = npt.NDArray[np.generic]
FloatArray = npt.NDArray[np.float32]

MAX_HEADER = 100_000_000
"""Bytes; the format's own bound on its JSON header."""
DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Dense:
    """A shift stored whole: `array` (d_in, d_out), float32, or float16 where the store keeps shifts in 16 bits."""

    array: FloatArray

    @property
    def shape(self) -> tuple[int, int]:
        """(d_in, d_out)."""
        return self.array.shape[0], self.array.shape[1]

    @property
    def nbytes(self) -> int:
        """Of what is stored."""
        return self.array.nbytes


@dataclass(frozen=True)
class Factors:
    """A shift stored as `left` (d_in, n) times `right` (n, d_out), both float32, or both float16 as of `Dense`."""

    left: FloatArray
    right: FloatArray

    @property
    def shape(self) -> tuple[int, int]:
        """(d_in, d_out)."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def nbytes(self) -> int:
        """Of what is stored."""
        return self.left.nbytes + self.right.nbytes


Shift = Dense | Factors


def materialise(shift: Shift) -> FloatArray:
    """The matrix (d_in, d_out), float32, that a stored shift stands for.

    A step's shift is *defined* as its stored bytes; whoever needs the matrix calls this.
    """
    if isinstance(shift, Dense):
        return shift.array.astype(np.float32, copy=False)
    product: FloatArray = shift.left.astype(np.float32, copy=False) @ shift.right.astype(np.float32, copy=False)
    return product


def halved(shift: Shift) -> tuple[Shift, float]:
    """A shift as 16 bits keep it, and the error of that, relative to its norm (Frobenius).

    Factors are brought to one size first, by a power of two, which changes no digit of their product. Rounded to
    float16 an entry is off by at most 2⁻¹¹ of itself, or by 3·10⁻⁸ where it is smaller than 6·10⁻⁵.
    Raises StepRefusedError where an entry is too large for 16 bits (65,504).
    """
    found: Shift
    # An overflow is looked for below, and told in words.
    with np.errstate(over="ignore", invalid="ignore"):
        if isinstance(shift, Dense):
            found = Dense(shift.array.astype(np.float16))
            finite = bool(np.isfinite(found.array).all())
        else:
            sizes = [max(float(np.abs(part).max(initial=0)), 1e-38) for part in (shift.left, shift.right)]
            scale = np.float32(2.0 ** round(np.log2(sizes[1] / sizes[0]) / 2))
            left, right = (shift.left * scale).astype(np.float16), (shift.right / scale).astype(np.float16)
            found = Factors(left, right)  # type: ignore[arg-type]
            finite = bool(np.isfinite(left).all() and np.isfinite(right).all())
    if not finite:
        raise StepRefusedError(
            "a shift has an entry above 65,504, the most that 16 bits keep; expected a smaller one; make the store "
            "with --set shift_dtype=float32"
        )
    exact = materialise(shift)
    off = materialise(found) - exact
    norm = float(np.linalg.norm(exact))
    return found, float(np.linalg.norm(off)) / norm if norm else 0.0


def smaller(dense: FloatArray, left: FloatArray, right: FloatArray) -> Shift:
    """Whichever of the two representations of one shift takes fewer bytes; dense when they tie."""
    if left.size + right.size < dense.size:
        return Factors(left, right)
    return Dense(dense)


def encode_tensors(tensors: Mapping[str, Array]) -> bytes:
    """The arrays as safetensors bytes, little-endian, in order of name.

    Raises StoreError where an array holds NaN or infinity, or has a dtype that the store does not keep.
    """
    clean: dict[str, Array] = {}
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name]).reshape(np.shape(tensors[name]))
        if array.dtype not in _NAMES:
            raise StoreError(f"tensor {name} is {array.dtype}; the store keeps {', '.join(sorted(map(str, _NAMES)))}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = int(array.size - np.isfinite(array).sum())
            raise StoreError(f"tensor {name} holds {bad} values that are NaN or infinite; only finite numbers are kept")
        clean[name] = array
    data: bytes = save(clean)
    return data


def decode_tensors(
    data: bytes, what: str = "tensors", *, only: Collection[str] | None = None, views: bool = False
) -> dict[str, Array]:
    """The arrays in safetensors bytes; `what` names them in the error.

    only: those of these names, without decoding the others; one that is not there is left out. views: look at the bytes
    themselves, which nobody may write to, and copy none of them.
    Memory is bounded by the length of `data`: the header is checked before anything is allocated.
    Raises StoreDamagedError where the bytes are not what `encode_tensors` writes.
    """
    header = _check_header(data, what)
    if views:
        return {name: _array(data, entry, f"{what}: tensor {name!r}") for name, entry in header.items()}
    if only is not None:
        return {name: _array(data, entry, f"{what}: tensor {name!r}") for name, entry in header.items() if name in only}
    try:
        tensors: dict[str, Array] = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise StoreDamagedError(f"{what}: not safetensors bytes ({said(error)})") from error
    return tensors


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def _array(data: bytes, entry: _Entry, what: str) -> Array:
    """One array of safetensors bytes, read where its checked entry says."""
    dtype, (start, end) = DTYPES[entry.dtype], entry.data_offsets
    count = math.prod(entry.shape)
    if count * dtype.itemsize != end - start:
        raise StoreDamagedError(f"{what} of shape {entry.shape} takes {end - start} bytes")
    begun = 8 + int.from_bytes(data[:8], "little") + start
    return np.frombuffer(data, dtype.newbyteorder("<"), count, begun).reshape(entry.shape)


def _check_header(data: bytes, what: str) -> dict[str, _Entry]:
    """The header. Refuse bytes whose header claims more than is there, or a dtype that the store does not keep."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(len(data) - 8, MAX_HEADER):
        raise StoreDamagedError(
            f"{what}: {len(data)} bytes cannot hold the header of {length} bytes that they announce"
        )
    try:
        header = msgspec.json.decode(data[8 : 8 + length], type=dict[str, _Entry])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise StoreDamagedError(f"{what}: the header is not one of tensors ({said(error)})") from error
    room = len(data) - 8 - length
    for name, entry in header.items():
        if entry.dtype not in DTYPES:
            raise StoreDamagedError(f"{what}: tensor {name!r} is {entry.dtype}; expected one of {', '.join(DTYPES)}")
        start, end = entry.data_offsets
        if not 0 <= start <= end <= room or any(n < 0 for n in entry.shape):
            raise StoreDamagedError(f"{what}: tensor {name!r} lies at {start}:{end} of {room} bytes")
    return header


def tensors_digest(tensors: Mapping[str, Array]) -> str:
    """The digest of named arrays: names, dtypes, shapes and bytes, in order of name, whatever codec holds them."""
    state = hashlib.blake2b(digest_size=DIGEST_SIZE)
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        head = json.dumps([name, array.dtype.str, list(np.shape(tensors[name]))])
        state.update(len(head).to_bytes(4, "big") + head.encode())
        state.update(array.data if array.size else b"")
    return state.hexdigest()


def encode_shifts(shifts: Mapping[str, Shift]) -> bytes:
    """One shift per edited module as bytes. Raises StoreError where a number is not finite."""
    tensors: dict[str, Array] = {}
    for module, shift in shifts.items():
        if isinstance(shift, Dense):
            tensors[f"dense/{module}"] = shift.array
        else:
            tensors[f"left/{module}"] = shift.left
            tensors[f"right/{module}"] = shift.right
    for name, array in tensors.items():
        if array.dtype not in (np.float32, np.float16) or array.ndim != 2:
            raise StoreError(f"shift {name} is {array.dtype} {array.shape}; expected a float32 or float16 matrix")
    return encode_tensors(tensors)


def decode_shifts(data: bytes, what: str = "shift") -> dict[str, Shift]:
    """The inverse of `encode_shifts`, as views of the bytes. Raises StoreDamagedError where a factor is alone."""
    tensors = decode_tensors(data, what, views=True)
    shifts: dict[str, Shift] = {}
    for name, array in tensors.items():
        part, _, module = name.partition("/")
        if array.dtype not in (np.float32, np.float16) or array.ndim != 2 or part not in ("dense", "left", "right"):
            raise StoreDamagedError(
                f"{what}: {name!r} is {array.dtype} {array.shape}; expected a float32 or float16 matrix"
            )
        if part == "dense":
            shifts[module] = Dense(array)  # type: ignore[arg-type]
        elif part == "left":
            right = tensors.get(f"right/{module}")
            if right is None or right.shape[0] != array.shape[1]:
                raise StoreDamagedError(f"{what}: the factors of {module!r} do not fit each other")
            shifts[module] = Factors(array, right)  # type: ignore[arg-type]
    return shifts
