"""Every step says where it comes from, whatever its kind."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from lifelong_edit.facts import Fact
from lifelong_edit.stores import StepKind, backup
from lifelong_edit.timeline import Timeline
from lifelong_edit.timeline.config import author_of
from lifelong_edit.timeline.keeping import compact, restore
from lifelong_edit.timeline.purging import purge

# Batches that teach, and a reconsolidation too small to teach anything: the guard has good reason to object.
FORGETS = {"passes": 4, "reconsolidation_passes": 1, "reconsolidation_eta": 0.05, "seed": 7}


def test_every_kind_of_step_says_where_it_comes_from(
    start_store: Callable[..., Timeline], tmp_path: Path, batch: Callable[..., list[Fact]], lenient: Any
) -> None:
    start_store(tmp_path / "store", **FORGETS).close()
    began = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=5)
    with Timeline.open(tmp_path / "store", author="Ada") as timeline:
        for i in range(2):
            timeline.apply(batch(i), gate=lenient)
        timeline.reconsolidate()
        timeline.reconsolidate(guard=False)
        timeline.tag("mark", 1)
        timeline.rollback("mark")
        wrong = msgspec.structs.replace(batch(0)[1], target="Vienna")
        timeline.apply([wrong], conflicts="reject", gate=lenient)
        timeline.retract(batch(0)[:1])
        timeline.branch("trial", 2)
        timeline.switch("main")
        timeline.delete_tag("mark")
        timeline.delete_branch("trial")
    store, aside = tmp_path / "store", tmp_path / "aside"
    assert compact(store, author="Ada").step is not None
    purge(store, [batch(0)[0].digest], author="Ada")
    backup(store, aside)
    restore(aside, store, author="Ada")
    with Timeline.open(store, read_only=True) as timeline:
        log, settings, model = timeline.log(), timeline.config.settings_digest, timeline.config.model.fingerprint
    assert {record.kind for record in log} == set(get_args(StepKind))
    for record in log:
        found = record.provenance
        assert found["code"] == metadata.version("lifelong-edit")
        assert (found["fingerprint"], found["settings_digest"], found["seed"]) == (model, settings, 7)
        assert found["hypernetwork"] is None
        assert {"python", "numpy", "torch", "machine", "threads"} <= found["environment"].keys()
        assert began < datetime.datetime.fromisoformat(record.time) <= datetime.datetime.now(datetime.UTC)
        assert record.author == ("Ada" if record.step else author_of(None))


def test_networks_are_told_apart(
    start_store: Callable[..., Timeline], tmp_path: Path, make_network: Callable[..., Path]
) -> None:
    prints = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        network = make_network(tmp_path / f"network-{name}", seed)
        with start_store(tmp_path / name, network, editor="malmen") as timeline:
            assert timeline.tag("mark").provenance["hypernetwork"] == timeline.show(0).provenance["hypernetwork"]
            prints.append(timeline.show("head").provenance["hypernetwork"])
    assert prints[0] == prints[1] != prints[2] and len(prints[0]) == 32


@pytest.mark.parametrize(
    ("given", "variable", "author"),
    [
        ("Ada", "Grace", "Ada"),
        (None, "Grace", "Grace"),
        (" ", " Grace ", "Grace"),
        (None, " ", "login"),
        ("", None, "login"),
    ],
)
def test_who_makes_steps(
    timeline: Timeline, monkeypatch: pytest.MonkeyPatch, given: str | None, variable: str | None, author: str
) -> None:
    monkeypatch.setenv("LOGNAME", "login")
    monkeypatch.delenv("LIFELONG_AUTHOR", raising=False)
    if variable is not None:
        monkeypatch.setenv("LIFELONG_AUTHOR", variable)
    timeline.close()
    with Timeline.open(timeline.path, author=given) as again:
        assert again.tag("mark").author == author
