"""Steps as schemas 1 to 4 wrote them. They keep their bytes and digests, and are converted when they are read.

Those records had one type for all kinds, and a free `report` in which later steps looked things up. What early releases
did not log is left empty; what a report says beside what has a field by now is among the `notes`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from lifelong_edit.stores.figures import AsBase, Forecast, Gate, Guard, Met, Staleness
from lifelong_edit.stores.parts import KEYS, MOMENTS, WEIGHTS, Part, upsert_digest
from lifelong_edit.stores.records import KINDS, StepRecord
from lifelong_edit.stores.steps import STILL, Place, StepKind


class _StepOfSchema4(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A step of schemas 1 to 4; schema 2 brought `author`, `name` and `named`, schema 3 those from `dropped` on."""

    step: int
    kind: StepKind
    parent: int
    previous: str
    time: str
    reason: str | None = None
    author: str | None = None
    name: str | None = None
    named: int | None = None
    added: tuple[str, ...] = ()
    superseded: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    places: tuple[Place, ...] = ()
    shift: str | None = None
    keys: str | None = None
    snapshot: str | None = None
    editor_state: str | None = None
    fixed: str | None = None
    further_keys: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    out_of_reach: tuple[int, ...] = ()
    purged: tuple[str, ...] = ()
    wholes: dict[int, str] = {}
    weights_digest: str
    live_digest: str
    report: dict[str, Any] = {}
    provenance: dict[str, Any] = {}


_STEPS = msgspec.msgpack.Decoder(_StepOfSchema4)
_FIELDS = {name: frozenset(kind.__struct_fields__) for name, kind in KINDS.items()}
_COMMON = (
    "step", "parent", "previous", "time", "reason", "author", "weights_digest", "live_digest", "provenance",
)  # fmt: skip
_OWN = (
    "name",
    "named",
    "added",
    "superseded",
    "skipped",
    "places",
    "fixed",
    "dropped",
    "out_of_reach",
    "purged",
    "wholes",
)
"""Fields of some kinds; a record of another kind has nothing in them."""


def decode_earlier(data: bytes) -> StepRecord:
    """A step of schemas 1 to 4, as one of the present schema; raises msgspec.MsgspecError where the bytes are none."""
    old = _STEPS.decode(data)
    kind = KINDS[old.kind]
    taken = _FIELDS[old.kind]
    fields: dict[str, Any] = {name: getattr(old, name) for name in _COMMON}
    for name in _OWN:
        if name in taken:
            fields[name] = getattr(old, name)
        elif getattr(old, name) not in ((), {}, None):
            raise msgspec.ValidationError(f"a step of the kind `{old.kind}` has no `{name}`")
    parts = _parts(old)
    if "parts" in taken:
        fields["parts"] = parts
    elif parts:
        raise msgspec.ValidationError(f"a step of the kind `{old.kind}` brings nothing to a state")
    typed, notes = _told(old.report, taken)
    return kind(**fields, **typed, notes=notes)


def _parts(old: _StepOfSchema4) -> dict[str, Part]:
    """What its blobs are to the parts of a state."""
    found: dict[str, Part] = {}
    shift = () if old.shift is None else (old.shift,)
    if old.kind not in STILL or shift or old.snapshot is not None:
        found[WEIGHTS] = Part(fold="sum", change=shift, whole=old.snapshot, digest=old.weights_digest)
    if old.keys is not None:
        blobs = (old.keys, *old.further_keys)
        found[KEYS] = Part(fold="upsert", change=blobs, digest=upsert_digest(blobs))
    if old.editor_state is not None:
        # No digest was logged, and none was a part of the state's: draws at such a state stay what they were.
        found[MOMENTS] = Part(fold="replace", change=(old.editor_state,), digest="")
    return found


def _told(report: Mapping[str, Any], taken: frozenset[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The entries of a report that have fields by now, and the others."""
    typed: dict[str, Any] = {}
    notes: dict[str, Any] = {}
    for entry, value in report.items():
        name, convert = _ENTRIES.get(entry, (None, None))
        try:
            if name is None or convert is None or name not in taken:
                raise ValueError
            typed[name] = convert(value)
        except (ValueError, TypeError, AttributeError):  # msgspec.ValidationError is a ValueError
            notes[entry] = value
    return typed, notes


def _as(kind: Any) -> Callable[[Any], Any]:
    return lambda value: msgspec.convert(value, kind)


_ENTRIES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "gate": ("gate", Gate.of),
    "conflicts": ("conflicts", lambda told: tuple(Met.of(one) for one in told)),
    "skipped": ("left_out", _as(dict[str, int])),
    "reviewed": ("reviewed", _as(tuple[str, ...])),
    "in_words_of": ("in_words_of", _as(dict[str, tuple[str, ...]])),
    "forecast": ("forecast", Forecast.of),
    "start": ("start", _as(float)),
    "guard": ("guard", Guard.of),
    "objections": ("objections", _as(tuple[str, ...])),
    "staleness": ("staleness", Staleness.of),
    "as_base": ("as_base", _as(dict[str, AsBase])),
    "seconds": ("seconds", _as(float)),
    "kept": ("kept", _as(dict[str, tuple[str, ...]])),
    "bytes": ("bytes", _as(int)),
    "backup_head": ("backup_head", _as(int)),
    "replaced_head": ("replaced_head", _as(int | None)),
}
"""Entry of a report → field, and the conversion; what it refuses stays a note."""
