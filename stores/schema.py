"""The records of the log. What is not in here is not kept."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import numpy as np

SCHEMA_VERSION = 4
"""Written into every store; a store with a larger number is refused, naming both.

2: kinds `tag`, `branch`, `switch` and `decide`; fields `author`, `name` and `named`. 3: kinds `compact`, `restore` and
`purge`; fields `dropped`, `out_of_reach`, `wholes` and `purged`. 4: the table `measurements`; the marker's field
`encryption`. The first step that is added to a store of an earlier version raises its number, since the release that
made it could not read that step; so does the first measurement.
"""

StepKind = Literal[
    "init", "edit", "rollback", "reconsolidate", "refused", "retract", "decide", "tag", "branch", "switch",
    "compact", "restore", "purge",
]  # fmt: skip
STILL: tuple[StepKind, ...] = ("rollback", "refused", "tag", "branch", "switch", "compact", "restore", "purge")
"""Kinds of steps that make no state of their own: they stand at their parent's."""


class Encryption(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a marker holds the key of an encrypted store."""

    cipher: Literal["AES-256-GCM"] = "AES-256-GCM"
    wrapped: str
    """The store's data key, wrapped by the user's key (RFC 3394): 40 bytes in hexadecimal."""


class StoreMarker(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `store.json` holds beside the database, and the database beside its records: whose store this is."""

    store_id: str
    created: str
    """UTC, ISO 8601."""
    schema_version: int = SCHEMA_VERSION
    application: str = "lifelong-edit"
    encryption: Encryption | msgspec.UnsetType = msgspec.UNSET
    """Of an encrypted store; other markers say nothing of it."""


class Place(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where a record was read: the digest of the file's content, the record's number in it, and its fact."""

    file_digest: str
    number: int
    fact: str


class StepRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One committed entry of the log. Its digest in the chain is the digest of its encoded bytes.

    It holds `previous` and the digests of its payloads, so payloads can be dropped without breaking the chain.
    """

    step: int
    kind: StepKind
    parent: int
    """The step whose state this one starts from; −1 for `init`. A rollback's state *is* its parent's, and so is that of
    a tag, a branch or a switch."""
    previous: str
    """Chain digest of the preceding step in the log; empty for `init`."""
    time: str
    """UTC, ISO 8601."""
    reason: str | None = None
    author: str | None = None
    """Who made the step."""

    name: str | None = None
    """Of a tag, branch or switch: the name that it is about."""
    named: int | None = None
    """The step whose state that name stands for from here on; None where the name is taken away."""

    added: tuple[str, ...] = ()
    """Digests of the facts that became live, in the order of the batch."""
    superseded: tuple[str, ...] = ()
    """Digests of live facts that a fact of this step replaced, or that were retracted."""
    skipped: tuple[str, ...] = ()
    """Digests of the batch's records that were not applied, in the order of the batch."""
    places: tuple[Place, ...] = ()
    """Every record that the batch consumed, skipped ones included."""

    shift: str | None = None
    keys: str | None = None
    snapshot: str | None = None
    editor_state: str | None = None
    fixed: str | None = None
    """Digests of this step's blobs: shift, keys of the facts it traced, ΔW whole, editor state, what `init` fixed."""
    further_keys: tuple[str, ...] = ()
    """Digests of further blobs of keys, where the step traced more facts than one holds."""

    dropped: tuple[str, ...] = ()
    """Of `compact` and `purge`: digests of the blobs that went with this step; no state that is kept needs them."""
    out_of_reach: tuple[int, ...] = ()
    """Of `compact` and `purge`: the steps whose states cannot be gone back to any more."""
    purged: tuple[str, ...] = ()
    """Of `purge`: digests of the facts whose text went with this step."""
    wholes: dict[int, str] = {}
    """Of `compact`: ΔW whole of states that earlier steps made, by step, so that shifts before them could go."""

    weights_digest: str
    """`tensors_digest` of ΔW at this step's state."""
    live_digest: str
    """Digest of the sorted digests of the facts live at this step's state."""
    report: dict[str, Any] = {}
    """Gate figures, conflicts, the editor's report."""
    provenance: dict[str, Any] = {}
    """Code version, model fingerprint, settings digest, seed, environment, seconds."""

    @property
    def blobs(self) -> tuple[str, ...]:
        """Digests of the blobs that this record refers to, each once."""
        named = (self.shift, *self.key_blobs, self.snapshot, self.editor_state, self.fixed, *self.wholes.values())
        return tuple(dict.fromkeys(digest for digest in named if digest is not None))

    @property
    def key_blobs(self) -> tuple[str, ...]:
        """Digests of the blobs with the keys of the facts that this step traced."""
        return () if self.keys is None else (self.keys, *self.further_keys)


def _plain(value: object) -> Any:
    """NumPy scalars in a report as plain numbers."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a step record cannot hold a {type(value).__name__}")


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_plain)
_STEPS = msgspec.msgpack.Decoder(StepRecord)


def encode_step(record: StepRecord) -> bytes:
    """The bytes over which a step's chain digest is taken."""
    return _ENCODER.encode(record)


def decode_step(data: bytes) -> StepRecord:
    """The inverse of `encode_step`; raises msgspec.MsgspecError where the bytes are no step record."""
    return _STEPS.decode(data)
