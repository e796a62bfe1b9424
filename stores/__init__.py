"""What survives a crash: the edit log, the key index, the tensor codec. Imports neither torch nor transformers."""

from __future__ import annotations

from lifelong_edit.stores.digests import digest_bytes, seal, unseal
from lifelong_edit.stores.index import KeyIndex
from lifelong_edit.stores.log import EditLog, require_place
from lifelong_edit.stores.schema import SCHEMA_VERSION, Place, StepKind, StepRecord, StoreMarker
from lifelong_edit.stores.tables import Consumed, Head
from lifelong_edit.stores.tensors import (
    Dense,
    Factors,
    Shift,
    decode_shifts,
    decode_tensors,
    encode_shifts,
    encode_tensors,
    materialise,
    smaller,
    tensors_digest,
)

__all__ = [
    "SCHEMA_VERSION",
    "Consumed",
    "Dense",
    "EditLog",
    "Factors",
    "Head",
    "KeyIndex",
    "Place",
    "Shift",
    "StepKind",
    "StepRecord",
    "StoreMarker",
    "decode_shifts",
    "decode_tensors",
    "digest_bytes",
    "encode_shifts",
    "encode_tensors",
    "materialise",
    "require_place",
    "seal",
    "smaller",
    "tensors_digest",
    "unseal",
]
