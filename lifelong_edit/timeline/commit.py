"""From a draft to a committed step: what is encoded, which digests are logged, which weights are kept whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import numpy.typing as npt

from lifelong_edit.facts import Fact
from lifelong_edit.stores import (
    EditLog,
    Place,
    Shift,
    StepKind,
    StepRecord,
    Weights,
    digest_bytes,
    encode_shifts,
    encode_tensors,
    tensors_digest,
)
from lifelong_edit.timeline.config import Config, now
from lifelong_edit.timeline.history import SOLVED, History, live_digest
from lifelong_edit.timeline.sieve import Skip
from lifelong_edit.timeline.states import encode_keys, environment, sketch

if TYPE_CHECKING:
    from lifelong_edit.numerics.grams import FactKeys


@dataclass(kw_only=True)
class Draft:
    """A step before it is committed. `weights`: ΔW of the state that it leads to, (d_in, d_out) float32 each.

    Where they are None, it is the state at the head, whose stored weights stay. target: the step whose state this one
    goes to or stays at, of all kinds that make none (rollback, refusal, tag, branch, switch); its digests are taken
    over. name, named, dropped, out_of_reach, wholes, purged: as of `StepRecord`. further: what makes blobs as they are
    written. aside: facts that the log speaks of and that are not taught. key_parts: traces keys anew at each call, a
    few facts at a time, instead of `keys`; they are written as they come, so that they need not be held together.
    """

    kind: StepKind
    parent: int
    weights: Weights | None
    target: StepRecord | None = None
    facts: Sequence[Fact] = ()
    aside: Sequence[Fact] = ()
    superseded: Sequence[str] = ()
    skips: Sequence[Skip] = ()
    places: Sequence[Place] = ()
    shift: Mapping[str, Shift] | None = None
    keys: Mapping[str, FactKeys] = field(default_factory=dict)
    key_parts: Callable[[], Iterable[Mapping[str, FactKeys]]] | None = None
    editor_state: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None
    author: str | None = None
    name: str | None = None
    named: int | None = None
    dropped: Sequence[str] = ()
    out_of_reach: Sequence[int] = ()
    wholes: Mapping[int, str] = field(default_factory=dict)
    purged: Sequence[str] = ()
    further: Mapping[str, Callable[[], bytes]] = field(default_factory=dict)
    device: str | None = None


def write_step(log: EditLog, history: History, config: Config, draft: Draft) -> StepRecord:
    """Commit a draft after the head. Raises StoreError where nothing could be written, or a number is not finite."""
    head = log.head()
    stored = None if draft.weights is None else encode_tensors(draft.weights)
    parts = {
        "shift": None if draft.shift is None else encode_shifts(draft.shift),
        "keys": encode_keys(draft.keys) if draft.keys else None,
        "editor_state": encode_tensors(draft.editor_state) if draft.editor_state else None,
        "snapshot": stored if _keep_whole(history, config, draft) else None,
    }
    names = {part: digest_bytes(data) for part, data in parts.items() if data is not None}
    blobs: dict[str, bytes | Callable[[], bytes]] = {names[p]: data for p, data in parts.items() if data is not None}
    blobs |= draft.further
    weights = head.weights if stored is None else digest_bytes(stored)
    if stored is not None:
        blobs[digest_bytes(stored)] = stored
    record = outline(
        history,
        draft,
        head.step + 1,
        previous=head.chain,
        **names,
        further_keys=(),  # the log names them as they are written
        provenance=_provenance(config, draft),
    )
    facts = {fact.digest: msgspec.json.encode(fact) for fact in (*draft.facts, *draft.aside)}
    made = draft.key_parts
    traced = None if made is None else lambda: map(encode_keys, made())
    log.append(record, facts=facts, blobs=blobs, weights=weights, keys=traced)
    return record if traced is None else log.step(record.step)


def outline(history: History, draft: Draft, step: int, *, previous: str = "", **stored: Any) -> StepRecord:
    """The record of a draft as a step of a history. previous, stored: what it says of the log and its blobs."""
    return StepRecord(
        step=step,
        kind=draft.kind,
        parent=draft.parent,
        previous=previous,
        time=now(),
        reason=draft.reason,
        author=draft.author,
        name=draft.name,
        named=draft.named,
        dropped=tuple(draft.dropped),
        out_of_reach=tuple(draft.out_of_reach),
        wholes=dict(draft.wholes),
        purged=tuple(draft.purged),
        added=tuple(fact.digest for fact in draft.facts),
        superseded=tuple(draft.superseded),
        skipped=tuple(skip.fact for skip in draft.skips),
        places=tuple(draft.places),
        weights_digest=_weights_digest(draft),
        live_digest=_live_digest(history, draft),
        report=draft.report,
        **stored,
    )


def _keep_whole(history: History, config: Config, draft: Draft) -> bool:
    if draft.target is not None:  # the state is kept by the step that made it
        return False
    if draft.kind in SOLVED:  # they have no shift from the state before
        return True
    return history.since_snapshot(draft.parent) + 1 >= config.settings.snapshot_every


def _weights_digest(draft: Draft) -> str:
    if draft.target is not None:
        return draft.target.weights_digest
    assert draft.weights is not None  # only a step that stays at a state has none of its own
    return tensors_digest(draft.weights)


def _live_digest(history: History, draft: Draft) -> str:
    gone = set(draft.superseded)
    live = [digest for digest in history.live(draft.parent) if digest not in gone]
    return live_digest([*live, *(fact.digest for fact in draft.facts)])


def _provenance(config: Config, draft: Draft) -> dict[str, Any]:
    made = {**config.provenance(), "environment": environment(draft.device)}
    if draft.target is None and draft.weights is not None:
        made["sketch"] = sketch(draft.weights)
    return made
