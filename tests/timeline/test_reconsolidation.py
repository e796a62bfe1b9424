"""Solving again over all live facts: what it depends on, what it stores, and what a refusal leaves as it was."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lifelong_edit.bench import silent
from lifelong_edit.editors.ridge import together as reconsolidation
from lifelong_edit.editors.ridge.batch import fact_keys
from lifelong_edit.editors.ridge.together import settled
from lifelong_edit.errors import StepRefusedError, StoreError, UsageError
from lifelong_edit.facts import Fact
from lifelong_edit.numerics.grams import FactKeys
from lifelong_edit.stores import decode_entries, decode_tensors, tensors_digest
from lifelong_edit.timeline import Timeline
from lifelong_edit.timeline.states import keys_at

Start = Callable[..., Timeline]
Batch = Callable[..., list[Fact]]
Gate = Callable[..., dict[str, Any]]
FORGETS = {"passes": 4, "reconsolidation_passes": 1, "reconsolidation_eta": 0.05}
"""Batches that teach, and a reconsolidation too small to teach anything: the guard has good reason to object."""


@pytest.fixture
def filled(start_store: Start, tmp_path: Path, batch: Batch, lenient: Gate) -> Callable[..., Timeline]:
    """Makes a store of a name with two batches in it; further arguments change settings."""

    def make(name: str = "store", **changes: Any) -> Timeline:
        timeline = start_store(tmp_path / name, **changes)
        for i in range(2):
            timeline.apply(batch(i), gate=lenient)
        return timeline

    return make


def held(timeline: Timeline) -> dict[str, torch.Tensor]:
    """The edited matrices of the timeline's own model at the head, which it leaves as they are at the base."""
    loaded = timeline.bench().loaded
    assert all(torch.equal(loaded.weight(m.name), loaded.base_weight(m.name)) for m in loaded.modules)
    with timeline.at("head").standing():
        return {m.name: loaded.weight(m.name).clone() for m in loaded.modules}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("editor", ["gradient", "ultraedit"])
def test_canonical_depends_on_the_live_facts_alone(
    start_store: Start, tmp_path: Path, batch: Batch, fact: Callable[..., Fact], lenient: Gate, editor: str
) -> None:
    """Other batches in another order, a fact that was replaced, a rollback: the same bytes in the end."""
    last = [*batch(2), fact(0, "Kenya")]
    with start_store(tmp_path / "one", editor=editor) as one:
        for facts in (batch(0), batch(1), last):
            before = one.apply(facts, gate=lenient)
        first = one.reconsolidate(guard=False)
    with start_store(tmp_path / "two", editor=editor) as two:
        two.apply(batch(7), gate=lenient)
        two.rollback(0)
        live = {f.digest: f for f in [*batch(0), *batch(1), *last]}
        live.pop(fact(0).digest)
        for size, start in ((5, 0), (4, 5)):
            other = two.apply(list(live.values())[::-1][start : start + size], gate=lenient)
        second = two.reconsolidate(guard=False)
    assert before.live_digest == other.live_digest
    assert before.weights_digest != other.weights_digest
    assert first.weights_digest == second.weights_digest
    assert (first.snapshot, first.live_digest) == (second.snapshot, second.live_digest)


def test_the_next_batch_follows_from_the_state_alone(
    filled: Callable[..., Timeline], batch: Batch, lenient: Gate
) -> None:
    """Whether the store was closed in between or not, and whatever stood before the reconsolidation."""
    with filled("straight") as straight:
        straight.reconsolidate(guard=False)
        wanted = straight.apply(batch(2), gate=lenient)
    with filled("reopened") as timeline:
        timeline.rollback(1)
        timeline.apply(batch(1), gate=lenient, again=True)
        timeline.reconsolidate(guard=False)
    with Timeline.open(timeline.path) as reopened:
        found = reopened.apply(batch(2), gate=lenient)
        assert reopened.facts() == [*batch(0), *batch(1), *batch(2)]
    assert found.weights_digest == wanted.weights_digest
    assert found.keys == wanted.keys


def test_micro_batches_change_nothing_beyond_rounding(filled: Callable[..., Timeline]) -> None:
    found = []
    for size in (1, 7, 64):
        with filled(str(size), micro_batch=size) as timeline:
            step = timeline.reconsolidate(guard=False)
            found.append((step.report["editor"]["passes"], timeline.weights(step.step)))
    for passes, weights in found[1:]:
        assert passes == found[0][0]
        for name, array in weights.items():
            assert np.linalg.norm(array - found[0][1][name]) < 1e-3 * np.linalg.norm(array)


def test_the_step_stores_the_shift_whole_and_the_keys_of_all_live_facts(filled: Callable[..., Timeline]) -> None:
    with filled() as timeline:
        heard: list[str] = []
        step = timeline.reconsolidate(guard=False, reason="spring", say=heard.append)
        assert (step.step, step.kind, step.parent, step.reason, step.shift) == (3, "reconsolidate", 2, "spring", None)
        assert (step.added, step.superseded) == ((), ())
        assert step.live_digest == timeline.show(2).live_digest
        snapshot = decode_tensors(timeline._log.blob(str(step.snapshot)), "snapshot")
        assert tensors_digest(snapshot) == step.weights_digest == tensors_digest(timeline.weights(3))
        keys = decode_entries(timeline._log.blob(str(step.keys)), "keys")
        assert keys.keys() == {fact.digest for fact in timeline.facts()}
        assert len(heard) == step.report["editor"]["passes"]
        assert step.report.keys() == {"start", "staleness", "guard", "objections", "editor", "seconds"}
        assert timeline.history().since_snapshot(3) == 0
        # The model that is asked is the one that the store describes.
        base = {m.name: timeline.bench().loaded.base_weight(m.name).numpy() for m in timeline.bench().loaded.modules}
        for name, weight in held(timeline).items():
            np.testing.assert_array_equal(weight.numpy(), base[name] + snapshot[name])


def test_keys_are_written_as_they_are_traced(
    filled: Callable[..., Timeline], batch: Batch, lenient: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few facts at a time, never held together; and what is read from several blobs is what one would have held."""
    held_at_once: list[int] = []
    made: list[weakref.ref[FactKeys]] = []

    def watched(*arguments: Any) -> dict[str, FactKeys]:
        held_at_once.append(sum(ref() is not None for ref in made))
        found = fact_keys(*arguments)
        made.extend(weakref.ref(keys) for keys in found.values())
        return found

    with filled() as timeline:
        monkeypatch.setattr(reconsolidation, "CHUNK", 2)
        step = timeline.reconsolidate(guard=False)
        timeline.rollback(2)
        monkeypatch.setattr(reconsolidation, "fact_keys", watched)
        again = timeline.reconsolidate(guard=False)
        assert held_at_once == [0, 0, 0]
        assert len(step.further_keys) == 2
        assert (again.keys, again.further_keys) == (step.keys, step.further_keys)
        assert set(step.key_blobs) < set(step.blobs)
        facts = sorted(fact.digest for fact in timeline.facts())
        blobs = [decode_entries(timeline._log.blob(digest), "keys") for digest in step.key_blobs]
        assert [list(part) for part in blobs] == [facts[:2], facts[2:4], facts[4:]]
        read = keys_at(timeline._log, timeline.history(), again.step)
        traced = timeline.editor().relearn(timeline.facts(), say=silent).keys()
        assert read.keys() == traced.keys() == set(facts)
        for fact, keys in traced.items():
            np.testing.assert_array_equal(read[fact].conflict, keys.conflict)
            for module, rows in keys.rows.items():
                np.testing.assert_array_equal(read[fact].rows[module], rows)
        following = timeline.apply(batch(2), gate=lenient)
    with Timeline.open(timeline.path) as reopened:
        reopened.rollback(step.step)
        assert reopened.apply(batch(2), gate=lenient, again=True).weights_digest == following.weights_digest


def test_keys_that_are_not_finite_commit_nothing(
    filled: Callable[..., Timeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> dict[str, FactKeys]:
        raise StepRefusedError("a key is not finite")

    with filled() as timeline:
        before = timeline.status()
        monkeypatch.setattr(reconsolidation, "fact_keys", broken)
        with pytest.raises(StepRefusedError, match="not finite"):
            timeline.reconsolidate(guard=False)
        assert timeline.status() == before


def test_it_can_be_rolled_back_and_gone_back_to(filled: Callable[..., Timeline], batch: Batch, lenient: Gate) -> None:
    with filled() as timeline:
        before, step = timeline.show(2), timeline.reconsolidate(guard=False)
        after = timeline.apply(batch(2), gate=lenient)
        for target in (before, step, after):
            back = timeline.rollback(target.step)
            assert back.weights_digest == target.weights_digest == tensors_digest(timeline.weights(timeline.head))
            assert back.live_digest == target.live_digest
        timeline.rollback(step.step)
        assert timeline.apply(batch(2), gate=lenient, again=True).weights_digest == after.weights_digest
        timeline.rollback(2)
        assert timeline.reconsolidate(guard=False).weights_digest == step.weights_digest


def test_warm_begins_at_the_present_weights(filled: Callable[..., Timeline]) -> None:
    with filled() as timeline:
        found = {}
        for start in (0.0, 0.3, 1.0):
            found[start] = timeline.reconsolidate(start=start, guard=False)
            timeline.rollback(2)
        assert len({step.weights_digest for step in found.values()}) == 3
        losses = {start: step.report["editor"]["loss"][0] for start, step in found.items()}
        assert losses[1.0] < losses[0.0]
        assert {start: step.report["start"] for start, step in found.items()} == {0.0: 0.0, 0.3: 0.3, 1.0: 1.0}
        assert timeline.reconsolidate(start=1, guard=False).weights_digest == found[1.0].weights_digest


def test_a_refusal_is_logged_and_changes_nothing(filled: Callable[..., Timeline], batch: Batch, lenient: Gate) -> None:
    with filled("plain", **FORGETS) as plain:
        wanted = plain.apply(batch(2), gate=lenient).weights_digest
    with filled(**FORGETS) as timeline:
        before, weights, live = timeline.show(2), held(timeline), timeline.facts()
        step = timeline.reconsolidate(reason="try")
        assert (step.step, step.kind, step.parent, step.reason) == (3, "refused", 2, "try")
        assert (step.weights_digest, step.live_digest) == (before.weights_digest, before.live_digest)
        assert (step.snapshot, step.keys, step.shift) == (None, None, None)
        (objection,) = step.report["objections"]
        assert objection.startswith("retention falls from ")
        assert step.report["guard"]["after"]["retention"] < step.report["guard"]["before"]["retention"]
        assert same(held(timeline), weights)
        assert timeline.facts() == live
        assert timeline.status()["state"] == 2
        assert timeline.rollback(3).weights_digest == before.weights_digest
        assert timeline.apply(batch(2), gate=lenient).weights_digest == wanted
        timeline.rollback(2)
        unguarded = timeline.reconsolidate(guard=False)
        assert (unguarded.kind, unguarded.report["objections"]) == ("reconsolidate", [objection])


def test_an_exception_in_the_middle_leaves_the_state_before(
    filled: Callable[..., Timeline], batch: Batch, lenient: Gate
) -> None:
    def interrupt(phase: str) -> None:
        raise KeyboardInterrupt(phase)

    with filled("plain") as plain:
        wanted = plain.apply(batch(2), gate=lenient).weights_digest
    with filled() as timeline:
        weights, status = held(timeline), timeline.status()
        with pytest.raises(KeyboardInterrupt, match="pass 1 over 6 facts"):
            timeline.reconsolidate(say=interrupt)
        assert timeline.status() == status
        assert same(held(timeline), weights)
        assert timeline.apply(batch(2), gate=lenient).weights_digest == wanted


def test_it_ends_by_gain_or_by_number_of_passes(filled: Callable[..., Timeline]) -> None:
    with filled("few", reconsolidation_passes=3, reconsolidation_gain=0.0) as timeline:
        assert timeline.reconsolidate(guard=False).report["editor"]["passes"] == 3
    with filled("gain", reconsolidation_passes=40, reconsolidation_gain=0.01) as timeline:
        losses = timeline.reconsolidate(guard=False).report["editor"]["loss"]
    assert 8 < len(losses) < 40
    assert settled(losses, 0.01)
    assert not any(settled(losses[:passes], 0.01) for passes in range(len(losses)))


def test_a_loss_has_settled_when_four_passes_gain_little() -> None:
    falling = [8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]  # by 4 in the mean of four
    assert not settled(falling[:-1], 1.0), "seven are too few to tell"
    assert settled(falling, 0.126)
    assert not settled(falling, 0.124)
    assert not settled([8.0] + 7 * [2.0], 0.04), "the first pass is still among those before"
    assert settled([8.0] + 8 * [2.0], 0.04)
    assert settled([8.0, *(2.0, 3.0) * 4], 0.001), "what goes up and down has settled too"
    assert not settled([8.0, *(2.0, 3.0) * 4], 0.0), "asked to go on whatever happens"


def test_wrong_use(timeline: Timeline, batch: Batch, lenient: Gate) -> None:
    with pytest.raises(UsageError, match="no live facts"):
        timeline.reconsolidate()
    timeline.apply(batch(0), gate=lenient)
    for start in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match="expected 0"):
            timeline.reconsolidate(start=start)
    with Timeline.open(timeline.path, read_only=True) as reader, pytest.raises(StoreError, match="open read-only"):
        reader.reconsolidate()
    timeline.rollback(0)
    with pytest.raises(UsageError, match="no live facts"):
        timeline.reconsolidate()
    assert timeline.head == 2
