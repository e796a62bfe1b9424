"""Going back gives the same bytes, and going on from there gives the same bytes again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lifelong_edit.errors import StoreError, UsageError
from lifelong_edit.facts import Fact
from lifelong_edit.models import load_model
from lifelong_edit.stores import tensors_digest
from lifelong_edit.timeline import Timeline

Batch = Callable[..., list[Fact]]
Gate = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("editor", ["gradient", "ultraedit"])
def test_every_state_can_be_gone_back_to(
    start_store: Callable[..., Timeline], tmp_path: Path, batch: Batch, lenient: Gate, editor: str
) -> None:
    with start_store(tmp_path / "store", editor=editor) as timeline:
        made = [timeline.apply(batch(i), gate=lenient) for i in range(5)]
        digests = [timeline.show(0).weights_digest, *(r.weights_digest for r in made)]
        assert len(set(digests)) == 6
        assert [bool(r.snapshot) for r in made] == [False, False, True, False, False]
        for step in (4, 5, 2, 0, 3, 1):
            back = timeline.rollback(step)
            assert (back.kind, back.parent) == ("rollback", step)
            assert back.weights_digest == digests[step] == tensors_digest(timeline.weights(timeline.head))
            assert back.live_digest == timeline.show(step).live_digest
            assert timeline.status()["state"] == step
            if step < 5:
                again = timeline.apply(batch(step), gate=lenient, again=True)
                assert again.weights_digest == digests[step + 1]
                assert (again.kind, again.parent) == ("edit", step)
        timeline.rollback(0)
        for i in range(5):  # each now at another step number than the first time
            again = timeline.apply(batch(i), gate=lenient, again=True)
            assert again.weights_digest == digests[i + 1]
        timeline.rollback(1)
        other = timeline.apply(batch(9), gate=lenient)
        assert other.weights_digest not in digests


def test_the_same_digests_after_reopening(
    start_store: Callable[..., Timeline], tmp_path: Path, batch: Batch, lenient: Gate
) -> None:
    with start_store(tmp_path / "one") as one:
        straight = [one.apply(batch(i), gate=lenient).weights_digest for i in range(4)]
    start_store(tmp_path / "two").close()
    for i in range(4):
        with Timeline.open(tmp_path / "two") as two:
            assert two.apply(batch(i), gate=lenient).weights_digest == straight[i]
    with Timeline.open(tmp_path / "two") as two:
        two.rollback(1)
    with Timeline.open(tmp_path / "two") as two:
        assert two.apply(batch(1), gate=lenient, again=True).weights_digest == straight[1]


def test_step_0_is_the_base(timeline: Timeline, tiny_gpt2: Path, batch: Batch, lenient: Gate) -> None:
    base = load_model(str(tiny_gpt2)).model.state_dict()
    timeline.apply(batch(0), gate=lenient)
    assert not _equal(timeline.model().state_dict(), base)
    timeline.rollback(0)
    assert _equal(timeline.model().state_dict(), base)
    assert timeline.facts() == []


def _equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_rollback_can_be_rolled_back(timeline: Timeline, batch: Batch, lenient: Gate) -> None:
    first, second = (timeline.apply(batch(i), gate=lenient) for i in range(2))
    timeline.rollback(1)
    assert timeline.rollback(2).weights_digest == second.weights_digest
    to_a_rollback = timeline.rollback(3, reason="as after the first rollback")
    assert (to_a_rollback.parent, to_a_rollback.weights_digest) == (1, first.weights_digest)
    assert to_a_rollback.reason == "as after the first rollback"
    assert timeline.facts() == batch(0)


def test_a_step_that_does_not_exist_is_wrong_usage(timeline: Timeline) -> None:
    for step in (1, -1, 10):
        for call in (timeline.rollback, timeline.at, timeline.show):
            with pytest.raises(UsageError, match=f"no step {step}"):
                call(step)
    assert timeline.head == 0


def test_a_view_stays_what_it_is_while_the_head_moves(timeline: Timeline, batch: Batch, lenient: Gate) -> None:
    timeline.apply(batch(0), gate=lenient)
    prompt = batch(0)[0].prompt
    view = timeline.at(1)
    before = view.shifts(), view.facts(), view.ask(prompt), view.model().state_dict()
    for i in range(1, 4):
        timeline.apply(batch(i), gate=lenient)
    timeline.rollback(0)
    for name, array in view.shifts().items():
        np.testing.assert_array_equal(array, before[0][name])
    assert (view.facts(), view.ask(prompt)) == before[1:3]
    assert _equal(view.model().state_dict(), before[3])
    assert timeline.at(4).ask(prompt) != timeline.at(0).ask(prompt), "the edits must show somewhere"


def test_a_model_that_was_handed_out_is_nobody_elses(timeline: Timeline, batch: Batch, lenient: Gate) -> None:
    reference = timeline.apply(batch(0), gate=lenient).weights_digest
    timeline.rollback(0)
    with torch.no_grad():
        for parameter in timeline.model().parameters():
            parameter.fill_(7)
    assert timeline.apply(batch(0), gate=lenient, again=True).weights_digest == reference


def test_the_returned_model_carries_the_edit(timeline: Timeline, batch: Batch, lenient: Gate) -> None:
    timeline.apply(batch(0), gate=lenient)
    view, loaded = timeline.at(1), timeline.bench().loaded
    weights = view.model().state_dict()
    for module in loaded.modules:
        expected = loaded.base_weight(module.name).numpy() + view.shifts()[module.name]
        np.testing.assert_array_equal(weights[f"{module.name}.weight"].numpy(), expected)  # Conv1D: (d_in, d_out)


def test_the_bytes_of_steps_are_what_the_store_holds_of_them(timeline: Timeline, batch: Batch, lenient: Gate) -> None:
    for number in (0, 1):
        timeline.apply(batch(number), gate=lenient)
    timeline.rollback(1)
    records, log = timeline.log(), timeline._log
    held = {blob: log.blob_size(blob) for record in records for blob in record.blobs}
    facts = log.facts([digest for record in records for digest in record.added])
    assert len(facts) == 6 and all(held.values())
    assert sum(timeline.bytes_of(record.step) for record in records) == sum(held.values()) + sum(
        map(len, facts.values())
    )
    assert timeline.bytes_of(3) == 0 < timeline.bytes_of(2)


def test_a_reader_follows_the_writer(timeline: Timeline, batch: Batch, lenient: Gate) -> None:
    with Timeline.open(timeline.path, read_only=True) as reader:
        assert reader.head == 0
        timeline.apply(batch(0), gate=lenient)
        assert reader.head == 1
        assert reader.facts() == batch(0)
        for change in (lambda: reader.apply(batch(1)), lambda: reader.rollback(0)):
            with pytest.raises(StoreError, match="open read-only"):
                change()
