"""How stale stored keys are: against keys computed by hand, by age, and as each reconsolidation logs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lifelong_edit.facts import Fact
from lifelong_edit.judging import staleness
from lifelong_edit.timeline import Timeline
from lifelong_edit.tracing.rows import phrasings_of

Start = Callable[..., Timeline]
Batch = Callable[..., list[Fact]]
Gate = Callable[..., dict[str, Any]]
LOWEST, UPPER = "transformer.h.0.mlp.c_proj", "transformer.h.3.mlp.c_proj"
ROUNDING = 1e-4
"""A key may land on the neighbouring point of its 16-bit grid when other rows share its micro-batch."""


@pytest.fixture
def filled(start_store: Start, tmp_path: Path, batch: Batch, lenient: Gate) -> Callable[..., Timeline]:
    """Makes a store with some batches of three facts in it; further arguments change settings."""

    def make(batches: int, **changes: Any) -> Timeline:
        timeline = start_store(tmp_path / f"{batches}-{len(list(tmp_path.iterdir()))}", **changes)
        for i in range(batches):
            timeline.apply(batch(i), gate=lenient)
        return timeline

    return make


def table(found: dict[str, Any], module: str) -> dict[Any, tuple[int, float, float]]:
    """Facts, median and 90th percentile of a module, by bin of age."""
    rows = [row for row in found["drift"] if row["module"] == module]
    return {row["ages"] and tuple(row["ages"]): (row["facts"], row["median"], row["p90"]) for row in rows}


def counts(timeline: Timeline) -> dict[Any, int]:
    return {ages: facts for ages, (facts, _, _) in table(timeline.staleness(), UPPER).items()}


def by_hand(timeline: Timeline, fact: Fact, step: int, module: str) -> np.ndarray:
    """A fact's keys in a module at the state of a step, (n, d_in): a forward pass for each prompt, no padding."""
    model, tokenizer = timeline.at(step).model(), timeline.at(step).tokenizer
    keys: list[torch.Tensor] = []
    model.get_submodule(module).register_forward_hook(lambda _, inputs, __: keys.append(inputs[0][0]))
    found = []
    for prompt in (fact.prompt, *phrasings_of(fact, timeline.settings.phrasings)):
        with torch.no_grad():
            model(torch.tensor([tokenizer(f"{prompt} {fact.target}")["input_ids"]]))
        found.append(keys.pop()[len(tokenizer(prompt)["input_ids"]) - 1 : -1].numpy())
    return np.concatenate(found)


def test_drift_is_that_of_keys_computed_by_hand(filled: Callable[..., Timeline], batch: Batch) -> None:
    with filled(3, rehearse=0) as timeline:
        found = table(timeline.staleness(), UPPER)
        wanted = []
        for number in range(3):
            for fact in batch(number):
                then, now = (by_hand(timeline, fact, step, UPPER) for step in (number + 1, 3))
                wanted.append(np.linalg.norm(now - then) / np.linalg.norm(then))
        oldest = np.array(wanted[:3])
        assert oldest.min() > 100 * ROUNDING
        assert found[2, 3] == pytest.approx((3, np.median(oldest), np.percentile(oldest, 90)), rel=1e-2)
        assert found[1, 1][1] == pytest.approx(np.median(wanted[3:6]), rel=1e-2)
        assert found[None] == pytest.approx((9, np.median(wanted), np.percentile(wanted, 90)), rel=1e-2)


def test_what_lies_below_all_edits_never_goes_stale(filled: Callable[..., Timeline]) -> None:
    with filled(3, rehearse=0) as timeline:
        found = timeline.staleness()
        assert all(p90 < ROUNDING for _, _, p90 in table(found, LOWEST).values())
        assert table(found, UPPER)[0, 0][2] < ROUNDING  # nor what was traced at the weights that still stand
        assert table(found, UPPER)[1, 1][1] > ROUNDING
        assert (found["state"], found["live"], found["sampled"]) == (3, 9, 9)


def test_age_is_counted_from_the_last_trace(
    filled: Callable[..., Timeline], fact: Callable[..., Fact], batch: Batch, lenient: Gate
) -> None:
    with filled(4, rehearse=0) as timeline:
        assert counts(timeline) == {None: 12, (0, 0): 3, (1, 1): 3, (2, 3): 6}
        timeline.apply([fact(0, "Kenya")], gate=lenient)  # takes the place of the oldest
        assert counts(timeline) == {None: 12, (0, 0): 1, (1, 1): 3, (2, 3): 6, (4, 7): 2}
        timeline.rollback(2)
        assert counts(timeline) == {None: 6, (0, 0): 3, (1, 1): 3}
        timeline.reconsolidate(guard=False)
        assert counts(timeline) == {None: 6, (0, 0): 6}
        timeline.apply(batch(7), gate=lenient)
        assert counts(timeline) == {None: 9, (0, 0): 3, (1, 1): 6}
    with filled(4, rehearse=50) as timeline:
        assert counts(timeline) == {None: 12, (0, 0): 12}


def test_bins_are_powers_of_two() -> None:
    assert [staleness.age_bin(age) for age in (0, 1, 2, 3, 4, 7, 8, 64)] == [
        (0, 0), (1, 1), (2, 3), (2, 3), (4, 7), (4, 7), (8, 15), (64, 127)
    ]  # fmt: skip


def test_a_sample_is_enough(
    filled: Callable[..., Timeline], monkeypatch: pytest.MonkeyPatch, batch: Batch, lenient: Gate
) -> None:
    monkeypatch.setattr(staleness, "SAMPLE", 4)
    with filled(3) as timeline:
        found = timeline.staleness()
        assert (found["live"], found["sampled"]) == (9, 4)
        assert found == timeline.staleness()
        timeline.rollback(0)
        assert timeline.staleness() == {"state": 0, "live": 0, "sampled": 0, "drift": []}


def test_a_reconsolidation_logs_it_as_of_before(filled: Callable[..., Timeline], batch: Batch, lenient: Gate) -> None:
    with filled(3, rehearse=0) as timeline:
        assert timeline.status()["staleness"] is None
        before, stood = timeline.staleness(), timeline.show(3).weights_digest
        step = timeline.reconsolidate(guard=False)
        assert step.report["staleness"] == before == timeline.status()["staleness"]
        after = timeline.staleness()
        assert after["state"] == step.step
        assert all(row["p90"] < ROUNDING for row in after["drift"])
        timeline.apply(batch(3), gate=lenient)
        timeline.reconsolidate(guard=False)
        assert timeline.status()["staleness"]["state"] == 5
        timeline.rollback(step.step)
        assert timeline.status()["staleness"] == before  # the later one began at a state that is no longer on the line
        timeline.rollback(2)
        assert timeline.status()["staleness"] is None
    with Timeline.open(timeline.path, read_only=True) as reader:
        assert reader.show(step.step).report["staleness"] == before
        assert reader.staleness()["state"] == 2
    assert stood != step.weights_digest


def test_looking_changes_nothing(filled: Callable[..., Timeline], batch: Batch, lenient: Gate) -> None:
    with filled(2) as plain:
        wanted = plain.apply(batch(2), gate=lenient)
    with filled(2) as timeline:
        timeline.staleness()
        found = timeline.apply(batch(2), gate=lenient)
    assert (found.weights_digest, found.keys) == (wanted.weights_digest, wanted.keys)
