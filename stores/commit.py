"""What one step writes, within the transaction that commits it."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from lifelong_edit.errors import StoreError, said
from lifelong_edit.stores.codec import decode_step, encode_step
from lifelong_edit.stores.digests import digest_bytes
from lifelong_edit.stores.parts import KEYS, Part, upsert_digest
from lifelong_edit.stores.records import StepRecord
from lifelong_edit.stores.tables import HEAD, Head, Tables, step_key


def follow(tables: Tables, record: StepRecord) -> Head:
    """The head that a record follows. Raises StoreError where it follows another one."""
    former = Head(-1, "") if tables.find("head", HEAD) is None else tables.head()
    if (record.step, record.previous) != (former.step + 1, former.chain):
        raise StoreError(f"step {record.step} does not follow step {former.step}, the head; read the log again")
    return former


def with_keys(tables: Tables, record: StepRecord, parts: Iterable[bytes]) -> StepRecord:
    """Write blobs of keys as they come, and name them in the record."""
    digests: list[str] = []
    for data in parts:
        digests.append(digest_bytes(data))
        tables.put_blob(digests[-1], data)
    part = Part(fold="upsert", change=tuple(digests), digest=upsert_digest(digests))
    return msgspec.structs.replace(record, parts={**record.parts, KEYS: part})


def enter(tables: Tables, record: StepRecord, weights: str | None) -> Head:
    """Write a step and make it the head."""
    encoded = encode_step(record)
    try:
        decode_step(encoded)
    except msgspec.MsgspecError as error:
        raise StoreError(
            f"step {record.step} could not be read back ({said(error)}); expected values of its types"
        ) from None
    head = Head(record.step, digest_bytes(encoded), weights)
    for digest in record.blobs:
        tables.refer(digest)
    if head.weights is not None and not tables.has_blob(head.weights):
        raise StoreError(f"the weights of step {record.step}, blob {head.weights}, are not in the store")
    if not {*record.blobs, head.weights}.isdisjoint(record.dropped):
        raise StoreError(f"step {record.step} drops a blob that it needs itself")
    for digest in record.dropped:
        tables.drop_blob(digest)
    for digest in record.purged:
        tables.drop_fact(digest)
    if record.purged:
        tables.forget_measured(record.purged)
    for place in record.places:
        tables.consume(place, record.step)
    tables.put("steps", step_key(record.step), encoded)
    tables.put("head", HEAD, msgspec.msgpack.encode(head))
    return head
