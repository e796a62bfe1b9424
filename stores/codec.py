"""Steps to bytes and back, of whatever schema they are."""

from __future__ import annotations

import msgspec

from lifelong_edit.stores.figures import plain
from lifelong_edit.stores.legacy import decode_earlier
from lifelong_edit.stores.records import StepRecord

_ENCODER = msgspec.msgpack.Encoder(enc_hook=plain)
_STEPS = msgspec.msgpack.Decoder(StepRecord)


def encode_step(record: StepRecord) -> bytes:
    """The bytes over which a step's chain digest is taken."""
    return _ENCODER.encode(record)


def decode_step(data: bytes) -> StepRecord:
    """A step from its bytes, of this schema or an earlier one; of those `encode_step` is no inverse, see `legacy`.

    Raises msgspec.MsgspecError, or what else msgspec raises for bytes that are none, where they are no step record.
    """
    try:
        found: StepRecord = _STEPS.decode(data)
        return found
    except msgspec.ValidationError as error:
        try:
            return decode_earlier(data)
        except msgspec.ValidationError:
            raise error from None
