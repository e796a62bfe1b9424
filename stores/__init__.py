"""What survives a crash: the edit log, the key index, the tensor codec. Imports neither torch nor transformers."""

from __future__ import annotations

from lifelong_edit.stores.checking import require_followable
from lifelong_edit.stores.copying import Backup, backup
from lifelong_edit.stores.digests import digest_bytes, seal, unseal
from lifelong_edit.stores.findings import Finding
from lifelong_edit.stores.folding import Shapes, Weights, add_shifts, decode_whole, fold, zeros
from lifelong_edit.stores.fsck import Report, fsck, require_sound
from lifelong_edit.stores.index import KeyIndex
from lifelong_edit.stores.keys import write_key_file
from lifelong_edit.stores.lock import LOCK_FILE, holder
from lifelong_edit.stores.log import EditLog, require_place
from lifelong_edit.stores.measurements import Measure, Measurement, Outcome
from lifelong_edit.stores.schema import SCHEMA_VERSION, STILL, Place, StepKind, StepRecord, StoreMarker
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
    "LOCK_FILE",
    "SCHEMA_VERSION",
    "STILL",
    "Backup",
    "Consumed",
    "Dense",
    "EditLog",
    "Factors",
    "Finding",
    "Head",
    "KeyIndex",
    "Measure",
    "Measurement",
    "Outcome",
    "Place",
    "Report",
    "Shapes",
    "Shift",
    "StepKind",
    "StepRecord",
    "StoreMarker",
    "Weights",
    "add_shifts",
    "backup",
    "decode_shifts",
    "decode_tensors",
    "decode_whole",
    "digest_bytes",
    "encode_shifts",
    "encode_tensors",
    "fold",
    "fsck",
    "holder",
    "materialise",
    "require_followable",
    "require_place",
    "require_sound",
    "seal",
    "smaller",
    "tensors_digest",
    "unseal",
    "write_key_file",
    "zeros",
]
