"""The records of the log: a type for each kind, and what earlier schemas wrote, converted when it is read."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from lifelong_edit.errors import StoreDamagedError
from lifelong_edit.stores import (
    STILL,
    AsBase,
    Decide,
    Edit,
    Forecast,
    Gate,
    Guard,
    Met,
    Part,
    Place,
    Reconsolidate,
    Refused,
    Retract,
    Staleness,
    StepRecord,
    Tag,
    decode_step,
    encode_step,
)
from lifelong_edit.stores.records import KINDS
from lifelong_edit.stores.tables import step_of
from tests.faults import small

COMMON: dict[str, Any] = {"step": 3, "parent": 2, "previous": "p" * 32, "time": "t", "weights_digest": "w"}
COMMON |= {"live_digest": "l"}
MET = {"kind": "contradiction", "new": "n" * 32, "old": "o" * 32, "probability": 1.0, "action": "quarantine"}
GATE = {"asked": 2, "taken": 1, "untaken": ["n" * 32], "perplexity": 10.5, "base_perplexity": 10.0}
FORECAST = {"by": "keys", "live": 4, "forgotten": 0.5, "share": 0.125}
GUARD = {
    when: {"retention": share, "asked": 4, "locality": None, "guards": 0, "perplexity": 10.5}
    for when, share in (("before", 0.5), ("after", 0.75))
}
DRIFT = [{"module": "m", "ages": ages, "facts": 3, "median": 0.0, "p90": 0.125} for ages in (None, [2, 3])]
STALENESS = {"state": 2, "live": 4, "sampled": 3, "drift": DRIFT}
BATCH = {"gate": GATE, "conflicts": [MET | {"by": "date"}], "skipped": {"live": 1}, "reviewed": ["r" * 32]}
REPORTS: dict[str, dict[str, Any]] = {
    "edit": BATCH | {"in_words_of": {"n" * 32: ["o" * 32]}, "forecast": FORECAST, "editor": {"passes": 3}},
    "decide": {"conflicts": [MET], "skipped": {"quarantined": 1}},
    "reconsolidate": {
        "start": 0.5,
        "staleness": STALENESS,
        "guard": GUARD,
        "objections": ["no"],
        "editor": {"loss": []},
    },
    "refused": {"start": 0.0, "guard": GUARD, "objections": ["it is Monday"]},
    "retract": {"start": 0.0, "as_base": {"retracted": {"asked": 2, "same": 1}}},
    "compact": {"kept": {"1": ["head", "main"]}, "bytes": 240},
    "restore": {"backup_head": 3, "replaced_head": None},
    "purge": {"bytes": 0},
}
"""What steps of schema 4 said."""


def earlier(kind: str, report: dict[str, Any], **fields: Any) -> bytes:
    """A step as schema 4 wrote it: all fields, in one type."""
    empty = {"reason": None, "author": None, "name": None, "named": None, "added": [], "superseded": [], "skipped": []}
    empty |= {"places": [], "shift": None, "keys": None, "snapshot": None, "editor_state": None, "fixed": None}
    empty |= {"further_keys": [], "dropped": [], "out_of_reach": [], "purged": [], "wholes": {}, "provenance": {}}
    return msgspec.msgpack.encode(empty | COMMON | {"kind": kind, "report": report} | fields)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_each_kind_comes_back(kind: str) -> None:
    record = KINDS[kind](**COMMON, author="Ada", notes={"editor": {"loss": [1.0]}}, seconds=0.5)
    data = encode_step(record)
    assert decode_step(data) == record and encode_step(decode_step(data)) == data
    assert (record.kind, msgspec.msgpack.decode(data)["kind"]) == (kind, kind)
    assert isinstance(record, StepRecord)
    assert record.blobs == record.added == record.superseded == record.places == () and record.shift is None
    assert record.report["editor"] == {"loss": [1.0]} and record.report["seconds"] == 0.5


def test_every_kind_says_whether_it_makes_a_state() -> None:
    assert {kind for kind, made in KINDS.items() if "parts" not in made.__struct_fields__} == set(STILL)


def test_a_field_that_a_kind_lacks_is_refused() -> None:
    with pytest.raises(TypeError):
        Tag(**COMMON, added=("f" * 32,))  # type: ignore[call-arg]
    data = msgspec.msgpack.encode(msgspec.msgpack.decode(encode_step(Tag(**COMMON))) | {"added": ["f" * 32]})
    with pytest.raises(StoreDamagedError, match="record steps/3 is no step of this schema"):
        step_of(3, data)


@pytest.mark.parametrize("kind", KINDS)
def test_what_earlier_schemas_said_is_said_still(kind: str) -> None:
    report = REPORTS.get(kind, {}) | {"seconds": 1.5, "something": {"else": 1}}
    found = step_of(3, earlier(kind, report))
    assert (found.kind, found.report) == (kind, report)
    assert found.notes.keys() <= {"something", "editor"}, "what has a field is no note"


def test_what_is_derived_from_has_a_type() -> None:
    found = step_of(3, earlier("edit", REPORTS["edit"]))
    assert isinstance(found, Edit) and isinstance(found.gate, Gate) and isinstance(found.forecast, Forecast)
    assert [met.action for met in found.conflicts] == ["quarantine"] and found.aside == ("n" * 32,)
    assert (found.gate.perplexity, found.forecast.forgotten) == (10.5, 0.5)
    assert (found.reviewed, found.left_out, found.in_words_of) == (("r" * 32,), {"live": 1}, {"n" * 32: ("o" * 32,)})
    found = step_of(3, earlier("reconsolidate", REPORTS["reconsolidate"]))
    assert isinstance(found, Reconsolidate) and isinstance(found.guard, Guard)
    assert found.guard.after is not None and found.guard.after.retention == 0.75
    assert found.guard.after.locality is None and found.report["guard"]["after"]["locality"] is None
    assert (found.start, found.objections) == (0.5, ("no",))
    assert isinstance(found.staleness, Staleness) and found.staleness.drift[1].ages == (2, 3)
    retracted = step_of(3, earlier("retract", REPORTS["retract"]))
    assert isinstance(retracted, Retract) and retracted.as_base == {"retracted": AsBase(asked=2, same=1)}
    refused = step_of(3, earlier("refused", REPORTS["refused"]))
    assert isinstance(refused, Refused) and refused.objections == ("it is Monday",)


def test_what_early_releases_did_not_say_is_empty() -> None:
    met = {name: MET[name] for name in ("kind", "new", "old", "action")}
    found = step_of(3, earlier("decide", {"conflicts": [met]}))
    assert isinstance(found, Decide) and found.conflicts == (Met.of(met),)
    assert found.report["conflicts"] == [met], "and nothing is made up for it"
    odd = {"gate": "fine", "conflicts": [{"kind": "paraphrase"}], "seconds": "long"}
    assert step_of(3, earlier("edit", odd)).report == odd


def test_blobs_of_earlier_schemas_are_parts() -> None:
    blobs = {"shift": "s" * 32, "snapshot": "w" * 32, "keys": "k" * 32, "further_keys": ["f" * 32]}
    found = step_of(3, earlier("edit", {}, editor_state="e" * 32, **blobs))
    assert {name: (part.fold, part.change, part.whole) for name, part in found.parts.items()} == {
        "weights": ("sum", ("s" * 32,), "w" * 32),
        "keys": ("upsert", ("k" * 32, "f" * 32), None),
        "moments": ("replace", ("e" * 32,), None),
    }
    assert found.parts["weights"].digest == found.weights_digest and found.parts["moments"].digest == ""
    assert (found.shift, found.snapshot, found.keys) == ("s" * 32, "w" * 32, "k" * 32)
    assert (found.further_keys, found.editor_state) == (("f" * 32,), "e" * 32)
    assert set(found.blobs) == {c * 32 for c in "swkfe"}


@pytest.mark.parametrize("fields", [{"shift": "s" * 32}, {"added": ["f" * 32]}, {"wholes": {1: "w" * 32}}])
def test_a_step_that_no_release_wrote_is_damage(fields: dict[str, Any]) -> None:
    """A tag brings nothing to a state; left out, it would be a blob that nothing counts."""
    with pytest.raises(StoreDamagedError, match="record steps/3 is no step of this schema"):
        step_of(3, earlier("tag", {}, **fields))


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xc1", msgspec.msgpack.encode(COMMON), b"\x91" * 5000])
def test_bytes_that_are_no_step_are_damage(data: bytes) -> None:
    with pytest.raises(StoreDamagedError, match="record steps/3 is no step of this schema"):
        step_of(3, data)


def test_figures_of_a_gate_of_ones_own_are_kept() -> None:
    gate = Gate.of({"judge": "none", "asked": np.int64(2), "perplexity": "n/a", "taken": None})
    assert (gate.asked, gate.perplexity, gate.taken) == (2, None, None)
    assert gate.told() == {"judge": "none", "asked": 2, "perplexity": "n/a", "taken": None}


def test_a_place_is_small() -> None:
    record = Edit(**COMMON, places=(Place("f" * 32, 7, "x" * 32),), parts=small.parts("w", shift="s" * 32))
    assert msgspec.msgpack.decode(encode_step(record))["places"] == [["f" * 32, 7, "x" * 32]]
    assert record.parts["weights"] == Part(fold="sum", change=("s" * 32,), digest="w")
