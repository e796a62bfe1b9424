"""What survives a crash: the edit log, the key index, the tensor codec. Imports neither torch nor transformers."""

from __future__ import annotations

from lifelong_edit.stores.checking import require_followable
from lifelong_edit.stores.codec import decode_step, encode_step
from lifelong_edit.stores.copying import Backup, backup
from lifelong_edit.stores.digests import digest_bytes, seal, unseal
from lifelong_edit.stores.entries import Entry, FactKeys, conflict_entries, decode_entries, encode_entries, entry_names
from lifelong_edit.stores.figures import AsBase, Drift, Figures, Forecast, Gate, Guard, Met, Risk, Staleness, Standing
from lifelong_edit.stores.findings import Finding
from lifelong_edit.stores.folding import WHOLE_UP_TO, Shapes, Weights, add_shifts, decode_whole, encode_whole, zeros
from lifelong_edit.stores.fsck import Report, fsck, require_sound
from lifelong_edit.stores.index import KeyIndex
from lifelong_edit.stores.keys import write_key_file
from lifelong_edit.stores.lock import LOCK_FILE, holder
from lifelong_edit.stores.log import EditLog, require_place
from lifelong_edit.stores.measurements import Measure, Measurement, Outcome
from lifelong_edit.stores.parts import KEYS, MOMENTS, WEIGHTS, Content, Fold, Part, Read, advance, replay, upsert_digest
from lifelong_edit.stores.records import (
    Batch,
    Branch,
    Compact,
    Decide,
    Edit,
    Init,
    Naming,
    Purge,
    Reconsolidate,
    Refused,
    Resolving,
    Restore,
    Retract,
    Rollback,
    StepRecord,
    Switch,
    Tag,
)
from lifelong_edit.stores.schema import SCHEMA_VERSION, StoreMarker
from lifelong_edit.stores.steps import STILL, Place, Step, StepKind
from lifelong_edit.stores.tables import Consumed, Head
from lifelong_edit.stores.tensors import (
    Dense,
    Factors,
    Shift,
    decode_shifts,
    decode_tensors,
    encode_shifts,
    encode_tensors,
    halved,
    materialise,
    smaller,
    tensors_digest,
)

__all__ = [
    "KEYS",
    "LOCK_FILE",
    "MOMENTS",
    "SCHEMA_VERSION",
    "STILL",
    "WEIGHTS",
    "WHOLE_UP_TO",
    "AsBase",
    "Backup",
    "Batch",
    "Branch",
    "Compact",
    "Consumed",
    "Content",
    "Decide",
    "Dense",
    "Drift",
    "Edit",
    "EditLog",
    "Entry",
    "FactKeys",
    "Factors",
    "Figures",
    "Finding",
    "Fold",
    "Forecast",
    "Gate",
    "Guard",
    "Head",
    "Init",
    "KeyIndex",
    "Measure",
    "Measurement",
    "Met",
    "Naming",
    "Outcome",
    "Part",
    "Place",
    "Purge",
    "Read",
    "Reconsolidate",
    "Refused",
    "Report",
    "Resolving",
    "Restore",
    "Retract",
    "Risk",
    "Rollback",
    "Shapes",
    "Shift",
    "Staleness",
    "Standing",
    "Step",
    "StepKind",
    "StepRecord",
    "StoreMarker",
    "Switch",
    "Tag",
    "Weights",
    "add_shifts",
    "advance",
    "backup",
    "conflict_entries",
    "decode_entries",
    "decode_shifts",
    "decode_step",
    "decode_tensors",
    "decode_whole",
    "digest_bytes",
    "encode_entries",
    "encode_shifts",
    "encode_step",
    "encode_tensors",
    "encode_whole",
    "entry_names",
    "fsck",
    "halved",
    "holder",
    "materialise",
    "replay",
    "require_followable",
    "require_place",
    "require_sound",
    "seal",
    "smaller",
    "tensors_digest",
    "unseal",
    "upsert_digest",
    "write_key_file",
    "zeros",
]
