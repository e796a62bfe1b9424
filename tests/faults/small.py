"""Small stores without a model: each step a function of its number, everything in them read back and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from lifelong_edit.facts import Fact
from lifelong_edit.stores import (
    KEYS,
    MOMENTS,
    WEIGHTS,
    Edit,
    EditLog,
    Init,
    Measurement,
    Outcome,
    Part,
    Place,
    digest_bytes,
    encode_tensors,
    upsert_digest,
)

FILE = "f" * 32
"""The digest of the file that all facts of these stores come from."""


def blob(number: int, size: int = 300) -> bytes:
    """Tensor bytes of `size` × 4 numbers that are all `number`."""
    return encode_tensors({"dense/m": np.full((size, 4), number, np.float32)})


def parts(
    digest: str,
    *,
    shift: str | None = None,
    snapshot: str | None = None,
    keys: str | None = None,
    moments: str | None = None,
) -> dict[str, Part]:
    """What a step brings, by the digests of its blobs. digest: of the weights after it."""
    found = {WEIGHTS: Part(fold="sum", change=() if shift is None else (shift,), whole=snapshot, digest=digest)}
    if keys is not None:
        found[KEYS] = Part(fold="upsert", change=(keys,), digest=upsert_digest([keys]))
    if moments is not None:
        found[MOMENTS] = Part(fold="replace", change=(moments,), digest="m" * 32)
    return found


def fact(number: int) -> Fact:
    """What step `number` teaches."""
    return Fact(subject=f"Town {number}", prompt=f"The mayor of Town {number} is", target=f"Person {number}")


def create(path: Path, *, encrypt: bool = False, **options: int) -> EditLog:
    """A store at step 0."""
    fixed, weights = blob(-1), blob(0)
    record = Init(
        step=0, parent=-1, previous="", time="t", fixed=digest_bytes(fixed), weights_digest="w0",
        live_digest="l0", parts=parts("w0"),
    )  # fmt: skip
    blobs = {digest_bytes(b): b for b in (fixed, weights)}
    return EditLog.create(path, record, blobs=blobs, weights=digest_bytes(weights), encrypt=encrypt, **options)


def add(log: EditLog, *, size: int = 300, snapshot: bool = False) -> Edit:
    """One step more, with a fact, a shift, weights and a place, each a function of the step's number."""
    head = log.head()
    number = head.step + 1
    shift, weights = blob(number, size), blob(1000 + number, size)
    added = fact(number)
    whole = digest_bytes(weights) if snapshot else None
    record = Edit(
        step=number, parent=head.step, previous=head.chain, time="t", added=(added.digest,),
        places=(Place(FILE, number, added.digest),),
        parts=parts(f"w{number}", shift=digest_bytes(shift), snapshot=whole),
        weights_digest=f"w{number}", live_digest="l",
    )  # fmt: skip
    blobs = {digest_bytes(b): b for b in (shift, weights)}
    log.append(record, facts={added.digest: msgspec.json.encode(added)}, blobs=blobs, weights=digest_bytes(weights))
    return record


def measurement(step: int, *facts: str) -> Measurement:
    """What was measured of a step: one outcome for each fact, by default for the one that `add` gave it."""
    asked = facts or (fact(step).digest,)
    outcomes = [Outcome(one, step, "efficacy", f"prompt {one}", True, True, f"answer {step}") for one in asked]
    return Measurement(
        step=step, weights_digest=f"w{step}", time="t", sample=64, seed=0, live={step: 1}, outcomes=outcomes
    )


def content(log: EditLog, start: int = 0) -> list[Any]:
    """Whatever the steps from `start` on say and name, and the head with its weights."""
    steps, head = log.steps(start), log.head()
    found: list[Any] = [steps, head, None if head.weights is None else log.blob(head.weights)]
    for step in steps:
        found.append(log.facts(step.added))
        found += [log.blob(digest) for digest in step.blobs]
        if not log.read_only:  # what only reads does not ask for places
            found += [log.consumed(place.file_digest, place.number) for place in step.places]
    return found


def is_whole(log: EditLog, start: int = 1) -> bool:
    """Whether every step that `add` made holds what `add` gave it, all of it readable."""
    content(log, start)
    for step in log.steps(start):
        (digest,), taught = step.added, fact(step.step)
        if (digest, step.places) != (taught.digest, (Place(FILE, step.step, digest),)):
            return False
        if log.facts([digest]) != {digest: msgspec.json.encode(taught)} or not log.consumed(FILE, step.step):
            return False
    return True
