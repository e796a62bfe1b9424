"""From a draft to a committed step: what is encoded, which digests are logged, which weights are kept whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy.typing as npt

from lifelong_edit.facts import Fact
from lifelong_edit.policies import EveryN
from lifelong_edit.stores import (
    KEYS,
    MOMENTS,
    WEIGHTS,
    EditLog,
    FactKeys,
    Part,
    Shift,
    StepRecord,
    Weights,
    digest_bytes,
    encode_entries,
    encode_shifts,
    encode_tensors,
    tensors_digest,
    upsert_digest,
)
from lifelong_edit.timeline.config import Config, now
from lifelong_edit.timeline.history import SOLVED, History, live_digest
from lifelong_edit.timeline.states import environment, sketch

UNMADE: dict[str, Any] = {"step": -1, "previous": "", "time": "", "weights_digest": "", "live_digest": ""}
"""What a record says of itself before it is committed: nothing yet."""


@dataclass(kw_only=True)
class Draft:
    """A step before it is committed.

    record: what it says, made with UNMADE; what only the commit knows (number, chain, time, digests, parts, facts that
    became live, provenance) is filled in there. weights: ΔW of the state that it leads to, (d_in, d_out) float32 each;
    None: it is the state at the head, whose stored weights stay. target: the step whose state this one goes to or stays
    at, of all kinds that make none (rollback, refusal, tag, branch, switch); its digests are taken over. facts: those
    that become live. aside: facts that the log speaks of and that are not taught. key_parts: traces keys anew at each
    call, a few facts at a time, instead of `keys`; they are written as they come, so that they need not be held
    together. further: what makes blobs as they are written.
    """

    record: StepRecord
    weights: Weights | None
    target: StepRecord | None = None
    facts: Sequence[Fact] = ()
    aside: Sequence[Fact] = ()
    shift: Mapping[str, Shift] | None = None
    keys: Mapping[str, FactKeys] = field(default_factory=dict)
    key_parts: Callable[[], Iterable[Mapping[str, FactKeys]]] | None = None
    editor_state: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    further: Mapping[str, Callable[[], bytes]] = field(default_factory=dict)
    device: str | None = None

    def fill(self, **fields: Any) -> None:
        """Fill in fields of the record."""
        self.record = msgspec.structs.replace(self.record, **fields)


def write_step(log: EditLog, history: History, config: Config, draft: Draft) -> StepRecord:
    """Commit a draft after the head. Raises StoreError where nothing could be written, or a number is not finite."""
    head = log.head()
    stored = None if draft.weights is None else encode_tensors(draft.weights)
    weights = head.weights if stored is None else digest_bytes(stored)
    blobs: dict[str, bytes | Callable[[], bytes]] = {} if stored is None else {digest_bytes(stored): stored}
    draft.fill(
        step=head.step + 1,
        previous=head.chain,
        time=now(),
        weights_digest=_weights_digest(draft),
        live_digest=_live_digest(history, draft),
        provenance=_provenance(config, draft),
    )
    if draft.facts:
        draft.fill(added=tuple(fact.digest for fact in draft.facts))
    if draft.target is None:
        draft.fill(parts=_parts(draft, blobs, weights if _keep_whole(history, config, draft) else None))
    facts = {fact.digest: msgspec.json.encode(fact) for fact in (*draft.facts, *draft.aside)}
    made = draft.key_parts
    traced = None if made is None else lambda: map(encode_entries, made())
    log.append(draft.record, facts=facts, blobs=blobs | dict(draft.further), weights=weights, keys=traced)
    return draft.record if traced is None else log.step(draft.record.step)


def _parts(draft: Draft, blobs: dict[str, bytes | Callable[[], bytes]], whole: str | None) -> dict[str, Part]:
    """What the step brings to each part of the state; its blobs are put with the others.

    whole: the blob with ΔW whole, where the step keeps it. Keys that are traced as they are written have no part yet:
    the log names them.
    """

    def keep(data: bytes) -> tuple[str]:
        blobs[digest_bytes(data)] = data
        return (digest_bytes(data),)

    shift = () if draft.shift is None else keep(encode_shifts(draft.shift))
    found = {WEIGHTS: Part(fold="sum", change=shift, whole=whole, digest=draft.record.weights_digest)}
    if draft.keys:
        change = keep(encode_entries(draft.keys))
        found[KEYS] = Part(fold="upsert", change=change, digest=upsert_digest(change))
    if draft.editor_state:
        change = keep(encode_tensors(draft.editor_state))
        found[MOMENTS] = Part(fold="replace", change=change, digest=tensors_digest(draft.editor_state))
    return found


def _keep_whole(history: History, config: Config, draft: Draft) -> bool:
    if draft.record.kind in SOLVED:  # they have no shift from the state before
        return True
    return EveryN(config.settings.snapshot_every).snapshot(history.since_snapshot(draft.record.parent) + 1)


def _weights_digest(draft: Draft) -> str:
    if draft.target is not None:
        return draft.target.weights_digest
    assert draft.weights is not None  # only a step that stays at a state has none of its own
    return tensors_digest(draft.weights)


def _live_digest(history: History, draft: Draft) -> str:
    gone = set(draft.record.superseded)
    live = [digest for digest in history.live(draft.record.parent) if digest not in gone]
    return live_digest([*live, *(fact.digest for fact in draft.facts)])


def _provenance(config: Config, draft: Draft) -> dict[str, Any]:
    made = {**config.provenance(), "environment": environment(draft.device)}
    if draft.target is None and draft.weights is not None:
        made["sketch"] = sketch(draft.weights)
    return made
