"""Envelopes and tensors: what goes in comes out, and nothing else does."""

from __future__ import annotations

import json
from collections.abc import Callable

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifelong_edit.errors import StoreDamagedError, StoreError
from lifelong_edit.stores import (
    Dense,
    Factors,
    decode_shifts,
    decode_tensors,
    digest_bytes,
    encode_shifts,
    encode_tensors,
    materialise,
    seal,
    smaller,
    tensors_digest,
    unseal,
)
from lifelong_edit.stores.tensors import DTYPES

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8).filter(
    lambda name: name != "__metadata__"
)
INTEGERS = st.sampled_from([d for d in DTYPES.values() if d.kind != "f"])
FINITE = arrays.arrays(
    np.float32, arrays.array_shapes(min_dims=0, max_dims=3, max_side=4), elements=st.floats(-9, 9, width=32)
)
ARRAYS = FINITE | arrays.arrays(INTEGERS, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))


@settings(deadline=None)
@given(st.text(max_size=10), st.binary(max_size=50), st.data())
def test_every_flipped_bit_of_a_record_is_noticed(name: str, payload: bytes, data: st.DataObject) -> None:
    sealed = bytearray(seal(name, payload))
    assert unseal(name, bytes(sealed)) == payload
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(StoreDamagedError, match="restore"):
        unseal(name, bytes(sealed))


def test_an_intact_record_in_another_place_is_noticed() -> None:
    with pytest.raises(StoreDamagedError, match="steps/2"):
        unseal("steps/2", seal("steps/1", b"payload"))


def test_a_record_shorter_than_its_digest_is_noticed() -> None:
    with pytest.raises(StoreDamagedError, match="head/head holds 3 bytes"):
        unseal("head/head", b"abc")


@settings(deadline=None)
@given(st.dictionaries(NAMES, ARRAYS, max_size=4))
def test_tensors_come_back_as_they_went(tensors: dict[str, np.ndarray]) -> None:
    data = encode_tensors(tensors)
    found = decode_tensors(data)
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()
    assert encode_tensors(dict(reversed(tensors.items()))) == data
    assert tensors_digest(found) == tensors_digest(tensors)


def test_the_digest_of_tensors_tells_names_shapes_and_dtypes_apart() -> None:
    zero = np.zeros((2, 3), np.float32)
    different = [{"a": zero}, {"b": zero}, {"a": zero.T}, {"a": zero.astype(np.int32)}, {"a": zero, "b": zero}, {}]
    assert len({tensors_digest(tensors) for tensors in different}) == len(different)
    assert tensors_digest({"a": zero.T.copy().T}) == tensors_digest({"a": zero})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused_by_name(bad: float) -> None:
    array = np.ones((2, 2), np.float32)
    array[1, 1] = bad
    with pytest.raises(StoreError, match=r"tensor dense/h\.3 holds 1 values"):
        encode_shifts({"h.3": Dense(array)})


def test_a_dtype_that_is_not_kept_is_refused_by_name() -> None:
    with pytest.raises(StoreError, match="tensor odd is complex64"):
        encode_tensors({"odd": np.zeros(2, np.complex64)})


def _file(header: object, body: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


ATTACKS = {
    "empty": b"",
    "header longer than the file": (1 << 40).to_bytes(8, "little") + b"{}",
    "header that is no JSON": (4).to_bytes(8, "little") + b"\xff\xfe{}",
    "a pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94.",
    "data beyond the end": _file({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}),
    "negative offsets": _file({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}, b"1234"),
    "shape that does not fit": _file({"a": {"dtype": "F32", "shape": [7], "data_offsets": [0, 4]}}, b"1234"),
    "unknown dtype": _file({"a": {"dtype": "O", "shape": [1], "data_offsets": [0, 4]}}, b"1234"),
    "bytes after the last tensor": _file({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"12345678"),
    "overlapping tensors": _file(
        {n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in ("a", "b")}, b"1234"
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_malformed_tensor_bytes_are_refused(attack: str) -> None:
    with pytest.raises(StoreDamagedError, match="the shift of step 7"):
        decode_tensors(ATTACKS[attack], "the shift of step 7")


@settings(deadline=None)
@given(st.binary(max_size=80))
def test_no_bytes_lead_to_anything_but_tensors_or_our_own_error(data: bytes) -> None:
    try:
        decode_shifts(data)
    except StoreDamagedError:
        return
    assert data[8:10] == b"{}"


def test_shifts_are_what_their_bytes_say() -> None:
    random = np.random.default_rng(0)
    left, right = (random.standard_normal(s).astype(np.float32) for s in ((6, 2), (2, 5)))
    dense = random.standard_normal((6, 5)).astype(np.float32)
    found = decode_shifts(encode_shifts({"a": Factors(left, right), "b": Dense(dense)}))
    np.testing.assert_array_equal(materialise(found["b"]), dense)
    # float32 dot products of length 2: at most two roundings of half an ulp each
    np.testing.assert_allclose(materialise(found["a"]), left.astype(float) @ right.astype(float), rtol=0, atol=1e-6)
    assert materialise(found["a"]).dtype == np.float32


def test_the_smaller_representation_is_chosen() -> None:
    dense, thin, wide = np.zeros((6, 5), np.float32), np.zeros((6, 2), np.float32), np.zeros((6, 4), np.float32)
    assert isinstance(smaller(dense, thin, np.zeros((2, 5), np.float32)), Factors)
    assert isinstance(smaller(dense, wide, np.zeros((4, 5), np.float32)), Dense)


def test_a_factor_without_its_partner_is_damage() -> None:
    with pytest.raises(StoreDamagedError, match="do not fit"):
        decode_shifts(encode_tensors({"left/a": np.zeros((3, 2), np.float32)}))


def test_digests_are_blake2b_of_the_chunks_end_to_end() -> None:
    assert digest_bytes(b"a", b"bc") == digest_bytes(b"abc") == "cf4ab791c62b8d2b2109c90275287816"


def test_stores_import_neither_torch_nor_transformers(run_python: Callable[..., str]) -> None:
    code = """
        import sys, pkgutil, importlib
        import lifelong_edit.stores as stores
        for module in pkgutil.iter_modules(stores.__path__):
            importlib.import_module(f"lifelong_edit.stores.{module.name}")
        print(sorted({"torch", "transformers", "faiss", "datasets"} & set(sys.modules)))
    """
    assert run_python(code).strip() == "[]"
