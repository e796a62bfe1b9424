"""16. A newer schema is refused with both versions; an older one is read as it is, and taken along with the first step.


`tests/stores/data/schema-1.tar.gz` was written by the last release of schema 1: step 0, two edits of one fact each
into a single matrix of 4 × 3, a rollback to step 1. `schema-2.tar.gz` has the same steps and a tag, a branch and a
switch, as the last release of schema 2 wrote them; `schema-3.tar.gz` a compaction and a purge more, as that of schema 3
did; `schema-4.tar.gz` edits with keys and moments, a quarantine, a reconsolidation, a refusal, a retraction and a
measurement more, as that of schema 4 did. They need no model.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from lifelong_edit.cli.looking import describe_step
from lifelong_edit.errors import StoreError
from lifelong_edit.stores import MOMENTS, SCHEMA_VERSION, EditLog, backup, fsck, identity, migrations, tensors_digest
from lifelong_edit.stores.environment import MEASUREMENTS
from lifelong_edit.stores.migrations import names
from lifelong_edit.stores.tables import MARKER, Tables
from lifelong_edit.timeline import Timeline
from lifelong_edit.timeline.keeping import compact, restore
from lifelong_edit.timeline.states import keys_at, parts_at
from tests.faults import small
from tests.stores.archives import said_of_schema_4, schema_1, schema_2, schema_3, schema_4


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The store of schema 1."""
    return schema_1(tmp_path)


@pytest.fixture
def younger(tmp_path: Path) -> Path:
    """The store of schema 2."""
    return schema_2(tmp_path)


@pytest.fixture
def youngest(tmp_path: Path) -> Path:
    """The store of schema 3."""
    return schema_3(tmp_path)


@pytest.fixture
def last(tmp_path: Path) -> Path:
    """The store of schema 4."""
    return schema_4(tmp_path)


def version(store: Path) -> Any:
    return json.loads((store / "store.json").read_bytes())["schema_version"]


def as_json(value: object) -> Any:
    """As a command with --json prints it."""
    return json.loads(msgspec.json.encode(value))


def put_marker(store: Path, which: str, marker: str) -> None:
    """Write a marker as it is given, beside the database or into it."""
    if which == "store.json":
        (store / "store.json").write_text(marker)
        return
    with EditLog.open(store) as log:
        environment = log._environment
        environment.write(lambda t: Tables(environment, t).put("meta", MARKER, marker.encode()))


def test_an_older_store_is_read_as_it_is(old: Path) -> None:
    before = {name: (old / name).read_bytes() for name in ("store.json", "HEAD", "data.mdb")}
    for read_only in (True, False):
        with Timeline.open(old, read_only=read_only) as timeline:
            assert [record.kind for record in timeline.log()] == ["init", "edit", "edit", "rollback"]
            assert {(record.author, record.name, record.named) for record in timeline.log()} == {(None, None, None)}
            assert [fact.subject for fact in timeline.facts()] == ["Place 1"]
            np.testing.assert_array_equal(timeline.weights(2)["m"], np.full((4, 3), 0.75, np.float32))
            assert [branch.name for branch in timeline.branches()] == ["main"]
    assert {name: (old / name).read_bytes() for name in before} == before


def test_its_first_new_step_takes_it_along(old: Path) -> None:
    with Timeline.open(old, author="Ada") as timeline:
        steps = timeline.log()
        timeline.tag("before", 2)
        timeline.branch("trial", 2)
    assert version(old) == SCHEMA_VERSION == 5
    with Timeline.open(old, read_only=True) as timeline:
        assert timeline.log()[:4] == steps
        assert [(r.kind, r.author, r.name) for r in timeline.log()[4:]] == [
            ("tag", "Ada", "before"),
            ("branch", "Ada", "trial"),
        ]
        assert timeline.show("before").step == 2
        np.testing.assert_array_equal(timeline.weights("trial")["m"], timeline.weights(2)["m"])


def test_the_release_that_made_it_then_refuses_it(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the writer was killed before it could write the file beside the database."""
    marker = (old / "store.json").read_bytes()
    with Timeline.open(old) as timeline:
        timeline.tag("mark")
    monkeypatch.setattr(identity, "SCHEMA_VERSION", 1)
    with pytest.raises(StoreError, match=r"store\.json has schema version 5, but this release reads up to 1"):
        EditLog.open(old)
    (old / "store.json").write_bytes(marker)
    with pytest.raises(StoreError, match=r"inside .*data\.mdb has schema version 5, but this release reads up to 1"):
        EditLog.open(old)
    monkeypatch.undo()
    with Timeline.open(old) as timeline:
        assert version(old) == 1
        timeline.delete_tag("mark")
        assert version(old) == SCHEMA_VERSION
        assert [record.kind for record in timeline.log()[4:]] == ["tag", "tag"]


def test_a_store_of_schema_2_is_read_as_it_is_and_taken_along(younger: Path) -> None:
    before = {name: (younger / name).read_bytes() for name in ("store.json", "HEAD", "data.mdb")}
    kinds = ["init", "edit", "edit", "rollback", "tag", "branch", "switch"]
    for read_only in (True, False):
        with Timeline.open(younger, read_only=read_only) as timeline:
            assert [record.kind for record in timeline.log()] == kinds
            assert {(record.dropped, record.out_of_reach) for record in timeline.log()} == {((), ())}
            np.testing.assert_array_equal(timeline.weights("trial")["m"], np.full((4, 3), 0.75, np.float32))
    assert fsck(younger).sound and version(younger) == 2
    assert {name: (younger / name).read_bytes() for name in before} == before
    with Timeline.open(younger) as timeline:
        steps = timeline.log()
        timeline.tag("second", 2)
    assert version(younger) == SCHEMA_VERSION and fsck(younger).sound
    with Timeline.open(younger, read_only=True) as timeline:
        assert timeline.log()[:-1] == steps


def test_a_store_of_schema_3_is_read_as_it_is_and_taken_along(youngest: Path) -> None:
    """Also by its first measurement, for which it has no table yet."""
    before = {name: (youngest / name).read_bytes() for name in ("store.json", "HEAD", "data.mdb")}
    for read_only in (True, False):
        with Timeline.open(youngest, read_only=read_only) as timeline:
            assert [record.kind for record in timeline.log()][-2:] == ["compact", "purge"]
            assert timeline.log()[-1].purged and timeline.log()[-2].out_of_reach == (2,)
            assert [fact.subject for fact in timeline.facts()] == ["Place 1"]
            assert timeline._log.measurements() == []
    assert fsck(youngest).sound and version(youngest) == 3
    assert {name: (youngest / name).read_bytes() for name in before} == before
    with EditLog.open(youngest) as log:
        log.keep_measurement(small.measurement(1))
    assert version(youngest) == SCHEMA_VERSION and fsck(youngest).sound
    with EditLog.open(youngest, read_only=True) as log:
        assert log.measurements() == [small.measurement(1)]


def test_a_store_of_schema_4_says_what_it_said_before(last: Path) -> None:
    """Of every step, with what was in the free report then; and what is folded from it."""
    before = {name: (last / name).read_bytes() for name in ("store.json", "HEAD", "data.mdb")}
    said = said_of_schema_4()
    with Timeline.open(last, read_only=True) as timeline:
        history = timeline.history()
        assert as_json([describe_step(record) for record in timeline.log()]) == [
            {name: value for name, value in step.items() if name not in ("branch", "sources")} for step in said["log"]
        ]
        assert as_json([record.report for record in timeline.log()]) == [step["report"] for step in said["show"]]
        shown = ("new_fact", "old_fact")
        expected = [{name: value for name, value in one.items() if name not in shown} for one in said["conflicts"]]
        assert timeline.conflicts() == expected
        for step, expected in enumerate(said["history"]):
            fold = history.fold(step)
            found = {
                "live": history.live(step), "state": history.state_of(step), "retracted": sorted(fold.retracted),
                "quarantined": fold.quarantined, "since_snapshot": history.since_snapshot(step),
                "edits": history.edits(step), "retention_left": history.retention_left(step),
                "forecast": history.forecast(step), "staleness": history.staleness(step),
            }  # fmt: skip
            assert as_json(found) == expected
            if history.dropped_by(step) is None:
                assert tensors_digest(timeline.weights(step)) == timeline.show(step).weights_digest
                if history.state_of(step) >= 11:  # those before were made without keys
                    assert list(keys_at(timeline._log, history, step)) == history.live(step)
        assert {fact: sorted(history.holding([fact])) for fact in said["holding"]} == said["holding"]
        assert {name: float(a.flat[0]) for name, a in parts_at(timeline._log, history, 16)[MOMENTS].items()} == {
            "m/count": 3, "m/mean": 0.5, "m/squares": 0.75,
        }  # fmt: skip
        assert len(timeline._log.measurements()) == 1
    assert fsck(last).sound and version(last) == 4
    assert {name: (last / name).read_bytes() for name in before} == before


@pytest.mark.parametrize(
    ("store", "due"),
    [("old", names()), ("younger", names()[1:]), ("youngest", names()[2:]), ("last", ("0005-typed-records",))],
)
def test_its_first_write_runs_the_migrations_and_names_them(
    store: str, due: tuple[str, ...], request: pytest.FixtureRequest
) -> None:
    """Steps that were there keep their bytes, and so their digests."""
    path: Path = request.getfixturevalue(store)
    with EditLog.open(path, read_only=True) as log:
        steps, head = log.steps(), log.head()
        assert tuple(one.name for one in migrations.due(log.marker)) == due
    with Timeline.open(path) as timeline:
        timeline.tag("mark")
        after = timeline._log.steps()
        assert after[:-1] == steps and after[-1].previous == head.chain
    with EditLog.open(path, read_only=True) as log:
        with log._reading() as tables:
            inside = tables.marker()
        assert inside == (path / "store.json").read_bytes()
        marker = json.loads(inside)
        assert (marker["schema_version"], marker["migrations"]) == (SCHEMA_VERSION, list(names()))
        assert migrations.due(log.marker) == [] and MEASUREMENTS in log._environment.tables
    assert fsck(path).sound


def test_each_migration_runs_once_and_in_order(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is registered later is due in a store of the present schema too."""
    ran: list[str] = []

    def noting(name: str) -> migrations.Migration:
        return migrations.Migration(name, lambda tables: ran.append(name))

    monkeypatch.setattr(migrations, "MIGRATIONS", [noting(name) for name in names()])
    for _ in range(2):
        with Timeline.open(old) as timeline:
            timeline.tag(f"mark-{len(ran)}")
    assert ran == list(names()) == sorted(names())
    monkeypatch.setattr(migrations, "MIGRATIONS", [*migrations.MIGRATIONS, noting("0005-later")])
    with Timeline.open(old) as timeline:
        timeline.tag("again")
    assert ran[-1] == "0005-later" and len(ran) == len(names())


@pytest.mark.parametrize("marker", ["store.json", "inside"])
def test_a_migration_that_nobody_knows_is_refused_like_a_newer_schema(last: Path, marker: str) -> None:
    with Timeline.open(last) as timeline:
        timeline.tag("mark")
    found = json.loads((last / "store.json").read_bytes())
    further = json.dumps(found | {"migrations": [*found["migrations"], "0009-unheard-of"]})
    put_marker(last, marker, further)
    for read_only in (False, True):
        with pytest.raises(StoreError, match=rf"{marker}.* has had the migration 0009-unheard-of, which this release"):
            EditLog.open(last, read_only=read_only)


@pytest.mark.parametrize("store", ["old", "younger", "youngest", "last"])
def test_looking_after_it_takes_it_along(store: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """A backup is of the store's own schema; compaction and restoration are steps like any other."""
    path: Path = request.getfixturevalue(store)
    number = version(path)
    backup(path, tmp_path / "copy")
    assert version(tmp_path / "copy") == number
    step = compact(path).step  # None where it was compacted before: nothing is left to drop
    assert version(path) == (number if step is None else SCHEMA_VERSION) and fsck(path).sound
    restore(tmp_path / "copy", path)
    assert version(path) == SCHEMA_VERSION and fsck(path).sound
    assert (version(tmp_path / "copy"), fsck(tmp_path / "copy").sound) == (number, True)


@pytest.mark.parametrize("marker", ["store.json", "inside"])
def test_a_newer_store_is_refused_with_both_versions(old: Path, marker: str) -> None:
    """Whatever fields its marker has, and whichever of the two says it."""
    newer = json.dumps({**json.loads((old / "store.json").read_bytes()), "schema_version": 7, "unheard_of": True})
    put_marker(old, marker, newer)
    before = (old / "data.mdb").read_bytes()
    for read_only in (False, True):
        with pytest.raises(
            StoreError, match=rf"{marker}.* has schema version 7, but this release reads up to {SCHEMA_VERSION}"
        ):
            EditLog.open(old, read_only=read_only)
    assert (old / "data.mdb").read_bytes() == before


@pytest.mark.parametrize(("store", "head"), [("old", 3), ("last", 16)])
def test_killed_at_any_call_while_it_is_taken_along(
    store: str, head: int, request: pytest.FixtureRequest, run_python: Callable[..., str]
) -> None:
    """It is the old store then, or one of the present schema with the new step, whatever its markers say."""
    path: Path = request.getfixturevalue(store)
    number = version(path)
    code = """
        import json, shutil, sys
        from pathlib import Path
        from lifelong_edit.timeline import Timeline
        from tests.faults import kills
        template, head, call, going, seen = Path(sys.argv[1]), int(sys.argv[2]), 1, True, set()
        while going:
            store = template.with_name(str(call))
            shutil.copytree(template, store)
            def name():
                with Timeline.open(store) as timeline:
                    timeline.tag("mark")
            going = kills.killed_at(call, name)
            marker = json.loads((store / "store.json").read_bytes())["schema_version"]
            with Timeline.open(store) as timeline:
                seen.add((marker, timeline.head))
                timeline.weights("head")
                with timeline._log._reading() as tables:
                    inside = json.loads(tables.marker())
                assert ("0005-typed-records" in inside.get("migrations", ())) == (timeline.head == head + 1)
                if timeline.head == head:
                    timeline.tag("mark")
                else:
                    timeline.tag("again")
                assert [tag.name for tag in timeline.tags()][-1] in ("mark", "again")
            assert json.loads((store / "store.json").read_bytes())["schema_version"] == 5
            shutil.rmtree(store)
            call += 101
        print(sorted(seen))
    """
    expected = [(number, head), (number, head + 1), (SCHEMA_VERSION, head + 1)]
    assert run_python(code, path, head).strip() == str(expected)
