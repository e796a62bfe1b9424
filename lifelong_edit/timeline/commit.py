"""From a draft to a committed step: what is encoded, which digests are logged, which weights are kept whole."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from lifelong_edit.editors.contract import Added, Change, Entries, Whole
from lifelong_edit.facts import Fact
from lifelong_edit.facts.checks import require_words
from lifelong_edit.facts.stored import encode_fact
from lifelong_edit.stores import (
    KEYS,
    WEIGHTS,
    WHOLE_UP_TO,
    EditLog,
    Part,
    StepRecord,
    Weights,
    digest_bytes,
    encode_entries,
    encode_shifts,
    encode_tensors,
    encode_whole,
    tensors_digest,
    upsert_digest,
)
from lifelong_edit.timeline.config import Config, now
from lifelong_edit.timeline.history import SOLVED, History, digest_in_order
from lifelong_edit.timeline.states import environment, sketch
from lifelong_edit.tracked import Without, in_order

UNMADE: dict[str, Any] = {"step": -1, "previous": "", "time": "", "weights_digest": "", "live_digest": ""}
"""What a record says of itself before it is committed: nothing yet."""


@dataclass(kw_only=True)
class Draft:
    """A step before it is committed.

    record: what it says, made with UNMADE; what only the commit knows (number, chain, time, digests, parts, facts that
    became live, provenance) is filled in there. weights: ΔW of the state that it leads to, (d_in, d_out) float32 each;
    None: it is the state at the head, whose stored weights stay. target: the step whose state this one goes to or stays
    at, of all kinds that make none (rollback, refusal, tag, branch, switch); its digests are taken over. facts: those
    that become live. aside: facts that the log speaks of and that are not taught. change: what the rule brings, part by
    part; entries that are all there is of a part are made as they are written, so that they need not be held together.
    further: what makes blobs as they are written.
    """

    record: StepRecord
    weights: Weights | None
    target: StepRecord | None = None
    facts: Sequence[Fact] = ()
    aside: Sequence[Fact] = ()
    change: Change | None = None
    further: Mapping[str, Callable[[], bytes]] = field(default_factory=dict)
    device: str | None = None

    def fill(self, **fields: Any) -> None:
        """Fill in fields of the record."""
        self.record = msgspec.structs.replace(self.record, **fields)


def write_step(log: EditLog, history: History, config: Config, draft: Draft) -> StepRecord:
    """Commit a draft after the head.

    Raises StoreError where nothing could be written, or a number is not finite; UsageError where reason, author or name
    are no text, and BadInputError for a fact that could not be read back, before anything is written.
    """
    for what, text in (
        ("the reason", draft.record.reason),
        ("the author", draft.record.author),
        ("the name", draft.record.name),
    ):
        require_words(what, text)
    facts = {fact.digest: encode_fact(fact) for fact in (*draft.facts, *draft.aside)}
    head = log.head()
    whole = stored_whole(config, history, draft, log.blob_size)
    record, blobs = outline(config, history, draft, head.step + 1, whole, previous=head.chain)
    weights = head.weights if draft.weights is None else None if whole is None else digest_bytes(whole)
    del whole  # with a large model a second ΔW
    entries = None if draft.change is None else draft.change.parts.get(KEYS)
    made = entries.make if isinstance(entries, Entries) and entries.whole else None
    traced = None if made is None else lambda: map(encode_entries, made())
    log.append(record, facts=facts, blobs=blobs | dict(draft.further), weights=weights, keys=traced)
    return record if traced is None else log.step(record.step)


def stored_whole(
    config: Config, history: History, draft: Draft, size: Callable[[str], int] | None = None
) -> bytes | None:
    """ΔW of the state that a draft leads to, as bytes; None where it stays, or is read by the shifts that lead to it.

    size: of a blob in bytes, by which a large ΔW is stored whole or not; None: it always is.
    """
    if draft.weights is None or (size is not None and not _worth_whole(history, draft, size)):
        return None
    return encode_whole(draft.weights, config.settings.shift_dtype == "float16")


def outline(
    config: Config,
    history: History,
    draft: Draft,
    step: int,
    stored: bytes | None,
    *,
    previous: str = "",
) -> tuple[StepRecord, dict[str, bytes | Callable[[], bytes]]]:
    """The record of a draft as a step of a history, and the blobs that it brings. previous: chain digest before it.

    stored: what `stored_whole` gives for it.
    """
    blobs: dict[str, bytes | Callable[[], bytes]] = {} if stored is None else {digest_bytes(stored): stored}
    filled: dict[str, Any] = {
        "step": step,
        "previous": previous,
        "time": now(),
        "weights_digest": _weights_digest(draft),
        "live_digest": _live_digest(history, draft),
        "provenance": _provenance(config, draft),
    }
    if draft.facts:
        filled["added"] = tuple(fact.digest for fact in draft.facts)
    if draft.target is None:
        large = draft.weights is not None and _bytes_of(draft.weights) > WHOLE_UP_TO
        keeps = stored is not None and (large or _keep_whole(history, config, draft))
        whole = digest_bytes(stored) if stored is not None and keeps else None
        filled["parts"] = _parts(draft, filled["weights_digest"], blobs, whole)
    return msgspec.structs.replace(draft.record, **filled), blobs


def _parts(
    draft: Draft, digest: str, blobs: dict[str, bytes | Callable[[], bytes]], whole: str | None
) -> dict[str, Part]:
    """What the step brings to each part of the state; its blobs are put with the others.

    digest: of the weights after it. whole: the blob with ΔW whole, where the step keeps it. Keys that are traced as
    they are written have no part yet: the log names them.
    """

    def keep(data: bytes) -> tuple[str]:
        blobs[digest_bytes(data)] = data
        return (digest_bytes(data),)

    found = {WEIGHTS: Part(fold="sum", whole=whole, digest=digest)}
    for name, brought in ({} if draft.change is None else draft.change.parts).items():
        if isinstance(brought, Added):
            found[name] = msgspec.structs.replace(found[name], change=keep(encode_shifts(brought.shift)))
        elif isinstance(brought, Entries) and not brought.whole:
            change = tuple(blob for part in brought.make() if part for blob in keep(encode_entries(part)))
            found[name] = Part(fold="upsert", change=change, digest=upsert_digest(change))
        elif isinstance(brought, Entries) and name != KEYS:
            (all_of_it,) = keep(encode_entries({fact: held for part in brought.make() for fact, held in part.items()}))
            found[name] = Part(fold="upsert", whole=all_of_it, digest=upsert_digest((all_of_it,)))
        elif isinstance(brought, Whole) and name != WEIGHTS:
            change = keep(encode_tensors(brought.arrays))
            found[name] = Part(fold="replace", change=change, digest=tensors_digest(brought.arrays))
    return found


def _bytes_of(weights: Weights) -> int:
    return sum(array.nbytes for array in weights.values())


def _worth_whole(history: History, draft: Draft, size: Callable[[str], int]) -> bool:
    """Whether ΔW is stored whole with the step: a large one only where the shifts that lead there take as many bytes.

    The shifts are exact whatever their number, and as factors they are small: of a batch of 100 facts 2 to 5 % of the
    matrices of a model of 8 billion parameters.
    """
    assert draft.weights is not None  # asked only then
    total = _bytes_of(draft.weights)
    brought = None if draft.change is None else draft.change.parts.get(WEIGHTS)
    if total <= WHOLE_UP_TO or draft.record.kind in SOLVED or isinstance(brought, Whole):
        return True
    taken = sum(shift.nbytes for shift in brought.shift.values()) if isinstance(brought, Added) else 0
    at = draft.record.parent if draft.target is None else draft.target.step
    for record in history.back(at):
        if history.whole(record) is not None or taken >= total:
            break
        taken += size(record.shift) if record.shift is not None else 0
    return taken >= total


def _keep_whole(history: History, config: Config, draft: Draft) -> bool:
    brought = {} if draft.change is None else draft.change.parts
    if draft.record.kind in SOLVED or isinstance(brought.get(WEIGHTS), Whole):  # no shift from the state before
        return True
    return history.since_snapshot(draft.record.parent) + 1 >= config.settings.snapshot_every


def _weights_digest(draft: Draft) -> str:
    if draft.target is not None:
        return draft.target.weights_digest
    assert draft.weights is not None  # only a step that stays at a state has none of its own
    return tensors_digest(draft.weights)


def _live_digest(history: History, draft: Draft) -> str:
    left = Without(history.fold(draft.record.parent).live, set(draft.record.superseded))
    live = list(in_order(left))
    for fact in draft.facts:
        insort(live, fact.digest)
    return digest_in_order(live)


def _provenance(config: Config, draft: Draft) -> dict[str, Any]:
    made = {**config.provenance(), "environment": environment(draft.device)}
    if draft.target is None and draft.weights is not None:
        made["sketch"] = sketch(draft.weights)
    return made
