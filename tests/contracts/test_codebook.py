"""What a rule gets from the house that shifts no weight: its hooks wherever a state is looked at, its entries kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from lifelong_edit.editors.contract import Rule
from lifelong_edit.editors.grace.rule import GraceEditor
from lifelong_edit.editors.grace.settings import GraceSettings
from lifelong_edit.stores import Entry, FactKeys, decode_entries, encode_entries, fsck
from lifelong_edit.timeline import Timeline
from lifelong_edit.timeline.purging import purge
from lifelong_edit.timeline.states import parts_at
from lifelong_edit.tracing.rows import Row
from tests.contracts.editing import batch, fact

NEW = [fact(0), fact(2)]  # of one word each: one position can say no more


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = GraceSettings(modules=("2",), steps=20, radius=0.1, text_tokens=2000, snapshot_every=3)
    path = tmp_path_factory.mktemp("codebook") / "empty"
    Timeline.create(path, model="atlas", settings=settings, preserve=["The capital of Japan is"]).close()
    return path


@pytest.fixture
def make(tmp_path: Path, empty: Path) -> Iterator[Callable[[str], Timeline]]:
    made: list[Timeline] = []

    def begin(name: str) -> Timeline:
        made.append(Timeline.open(shutil.copytree(empty, tmp_path / name)))
        return made[-1]

    yield begin
    for timeline in made:
        timeline.close()


def answers(timeline: Timeline, step: int) -> list[bool]:
    return [timeline.at(step).ask(fact.prompt).strip().startswith(fact.target) for fact in NEW]


def entries(timeline: Timeline) -> bytes:
    found = parts_at(timeline._log, timeline.history(), timeline.head).get("codebook", {})
    return encode_entries(found)


def test_its_hooks_are_there_wherever_a_state_is_looked_at(make: Callable[[str], Timeline], tmp_path: Path) -> None:
    with make("s") as timeline:
        base = answers(timeline, 0)
        assert not any(base)
        step = timeline.apply(NEW)
        assert step.gate is not None and step.gate.taken == len(NEW), "the gate judged another model"
        assert all(answers(timeline, 1))
        timeline.apply(batch(1))
        timeline.rollback(0)
        assert answers(timeline, 3) == base
        timeline.rollback(1)
        assert all(answers(timeline, 4)) and answers(timeline, 0) == base
        digest = timeline.show(4).weights_digest
    with Timeline.open(tmp_path / "s") as again:
        assert all(answers(again, again.head)) and again.show(again.head).weights_digest == digest
        assert again.status()["live_facts"] == len(NEW)
    assert fsck(tmp_path / "s").sound


def test_what_is_retracted_was_never_there(make: Callable[[str], Timeline]) -> None:
    with make("both") as both, make("one") as one:
        both.apply(NEW)
        both.apply(batch(1))
        both.retract(NEW, reason="wrong")
        assert not any(answers(both, both.head))
        one.apply(batch(1))
        one.reconsolidate(guard=False)
        assert entries(both) == entries(one)
        both_next, one_next = both.apply(batch(2)), one.apply(batch(2))
        assert both_next.gate is not None and both_next.gate == one_next.gate
        assert entries(both) == entries(one) != b""
        both.retract([*batch(1), *batch(2)], reason="all")
        assert decode_entries(entries(both), "") == {}


def test_what_is_purged_is_gone(make: Callable[[str], Timeline], tmp_path: Path) -> None:
    with make("s") as timeline:
        timeline.apply([*NEW, *batch(1)])
        value = parts_at(timeline._log, timeline.history(), 1)["codebook"][NEW[0].digest].rows["value"].tobytes()
        timeline.retract([NEW[0]], reason="wrong")
    assert value in (tmp_path / "s" / "data.mdb").read_bytes()
    purge(tmp_path / "s", [NEW[0].digest], reason="asked")
    assert value not in (tmp_path / "s" / "data.mdb").read_bytes()
    with Timeline.open(tmp_path / "s") as timeline:
        assert answers(timeline, timeline.head)[1:] == [True] * (len(NEW) - 1)
        assert entries(timeline)


def test_an_entry_is_made_once(make: Callable[[str], Timeline], monkeypatch: pytest.MonkeyPatch) -> None:
    """Gate and guard look at what is written then."""
    made: list[str] = []
    trained = GraceEditor._trained

    def counted(self: GraceEditor, rows: Sequence[Row], begin: np.ndarray) -> tuple[np.ndarray, list[float]]:
        made.extend(str(row.fact) for row in rows)
        return trained(self, rows, begin)

    monkeypatch.setattr(GraceEditor, "_trained", counted)
    with make("s") as timeline:
        timeline.apply(NEW)
        assert sorted(made) == sorted(fact.digest for fact in NEW)
        made.clear()
        timeline.reconsolidate(guard=False)
        assert sorted(made) == sorted(fact.digest for fact in NEW)


@pytest.mark.parametrize(
    "parts",
    [
        {"weights": "sum"},
        {"keys": "upsert", "book": "upsert"},
        {"weights": "replace", "keys": "upsert"},
        {"weights": "sum", "keys": "upsert", "book": "sum"},
    ],
)
def test_parts_that_no_log_can_keep_are_refused(parts: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="the rule odd has the parts"):
        Rule(name="odd", title="", reference="", settings=GraceSettings, home="", parts=parts, relearns="")  # type: ignore[arg-type]


@pytest.mark.parametrize("conflict", [True, False])
def test_entries_come_back_as_they_were(conflict: bool) -> None:
    random = np.random.default_rng(3)
    rows = [{"a": random.standard_normal((n, 2, 3)), "b": np.arange(n + 1)} for n in (0, 2, 1)]
    kept = [FactKeys(r, np.ones(4, np.float32)) if conflict else Entry(r) for r in rows]
    found = decode_entries(encode_entries(dict(zip(("1" * 32, "0" * 32, "2" * 32), kept, strict=True))), "")
    assert list(found) == ["0" * 32, "1" * 32, "2" * 32]
    for entry, wanted in zip(found.values(), (kept[1], kept[0], kept[2]), strict=True):
        assert type(entry) is type(wanted)
        assert all(np.array_equal(entry.rows[name], wanted.rows[name]) for name in ("a", "b"))
    assert decode_entries(encode_entries({}), "") == {}
