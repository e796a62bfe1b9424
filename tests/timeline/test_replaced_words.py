"""A fact that takes the place of another is taught in its words too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from lifelong_edit.facts import Fact, Record
from lifelong_edit.stores import StepRecord
from lifelong_edit.timeline import Timeline
from lifelong_edit.timeline.model import as_tensors
from lifelong_edit.tracing.rows import fact_rows
from lifelong_edit.tracing.trace import trace

Place = Callable[..., list[Record]]
Gate = Callable[..., dict[str, Any]]


def in_words(fact: Fact, prompt: str, target: str, **more: Any) -> Fact:
    """The same subject and relation, asked otherwise, in a single phrasing."""
    return msgspec.structs.replace(fact, prompt=prompt, target=target, rephrases=(), **more)


def new_rows(step: StepRecord) -> int:
    """Of how many rows of new facts a step was made."""
    rows: dict[str, int] = step.report["editor"]["rows"]
    return rows["new"]


def test_a_successor_is_taught_in_the_words_of_all_before_it(
    timeline: Timeline, fact: Callable[..., Fact], placed: Place, lenient: Gate
) -> None:
    first = fact(0, "Paris")
    second = in_words(first, "Asked for the capital of Paris 0, they say", "Vienna")
    third = in_words(first, "Paris 0 is governed from", "Warsaw")
    for number, (one, rows) in enumerate([(first, 2), (second, 3), (third, 4)]):
        step = timeline.apply(placed([one, fact(number + 1)], str(number)), gate=lenient)
        assert new_rows(step) == rows + 2
    assert [f for f in timeline.facts() if f.subject == first.subject] == [third]
    timeline.rollback(1)
    step = timeline.apply(placed([third], "c"), again=True, gate=lenient)
    assert step.superseded == (first.digest,)
    assert new_rows(step) == 3  # the second is not on this line


def test_what_a_fact_of_the_same_batch_would_have_replaced_goes_on_to_its_successor(
    start_store: Callable[..., Timeline], tmp_path: Path, fact: Callable[..., Fact], placed: Place, lenient: Gate
) -> None:
    first = msgspec.structs.replace(fact(0, "Paris"), relation=None)
    second = in_words(first, "The government of Paris 0 sits in", "Vienna")
    third = in_words(first, "Paris 0 is governed from", "Warsaw")

    def one_after_the_other(new: Fact, old: Fact, kind: str, probability: float) -> str:
        return "keep" if (new, old) == (third, first) else "supersede"

    with start_store(tmp_path / "store", conflict_probability=1e-9) as timeline:
        timeline.apply(placed([first], "a"), gate=lenient)
        step = timeline.apply(placed([second, third], "b"), conflicts=one_after_the_other, gate=lenient)
        assert (step.added, step.superseded) == ((third.digest,), (first.digest,))
        assert new_rows(step) == 3


def test_the_old_words_get_the_new_answer(
    timeline: Timeline, fact: Callable[..., Fact], placed: Place, lenient: Gate
) -> None:
    """The same contradiction, noticed and not: both ways the new prompt is taught, the old one only where noticed."""
    first = fact(0, "Paris")
    second = in_words(first, "Paris 0 is governed from", "Vienna")
    timeline.apply(placed([first], "a"), gate=lenient)
    losses = {}
    for policy in ("supersede", "keep"):
        timeline.apply(placed([second], policy), gate=lenient, conflicts=policy)
        loaded = timeline.bench().loaded
        asked = fact_rows(loaded, [msgspec.structs.replace(first, target="Vienna")], 0)
        with loaded.at(as_tensors(timeline.weights(timeline.head))):
            losses[policy] = float(trace(loaded, asked, 8, gradients=False).losses[0])
        timeline.rollback(1)
    assert losses["supersede"] < 0.5 * losses["keep"]


def test_words_that_another_live_fact_has_by_now_stay_its_own(
    start_store: Callable[..., Timeline], tmp_path: Path, fact: Callable[..., Fact], placed: Place, lenient: Gate
) -> None:
    first = msgspec.structs.replace(fact(0, "Paris"), rephrases=())
    second = in_words(first, "Paris 0 is governed from", "Vienna")
    again = msgspec.structs.replace(first, target="Kenya", relation=None)
    third = in_words(first, "The government of Paris 0 sits in", "Warsaw")
    with start_store(tmp_path / "store", conflict_probability=1.0) as timeline:  # identities alone
        for one in (first, second, again):
            timeline.apply(placed([one], one.target), gate=lenient)
        assert timeline.facts() == [second, again]
        step = timeline.apply(placed([third], "d"), gate=lenient)
        assert step.superseded == (second.digest,)
        assert new_rows(step) == 2  # its own words and those of the second; the first's are another fact's


def test_words_too_long_with_the_new_answer_are_left_out(
    timeline: Timeline, fact: Callable[..., Fact], placed: Place, lenient: Gate
) -> None:
    start, tokenizer = fact(0, "Paris"), timeline.bench().loaded.tokenizer
    prompt = start.prompt
    while len(tokenizer(f"The {prompt} Paris")["input_ids"]) < tokenizer.model_max_length - 1:
        prompt = f"The {prompt}"
    first = msgspec.structs.replace(start, prompt=prompt, rephrases=())
    second = in_words(start, "Paris 0 is governed from", "Vienna Warsaw Belgrade Sydney Kenya Japan London Vienna")
    timeline.apply(placed([first], "a"), gate=lenient)
    step = timeline.apply(placed([second], "b"), gate=lenient)
    assert (step.superseded, new_rows(step)) == ((first.digest,), 1)


def test_its_keys_are_those_of_all_words_and_age_as_those_of_its_own(
    timeline: Timeline, fact: Callable[..., Fact], placed: Place, lenient: Gate
) -> None:
    first = fact(0, "Paris")
    second = in_words(first, "Paris 0 is governed from", "Vienna")
    timeline.apply(placed([second], "a"), gate=lenient)
    alone = {name: len(rows) for name, rows in keys_at(timeline, second).items()}
    timeline.rollback(0)
    timeline.apply(placed([first], "b"), gate=lenient)
    timeline.apply(placed([second], "c"), again=True, gate=lenient)
    assert all(len(rows) > alone[name] for name, rows in keys_at(timeline, second).items())
    assert all(row["median"] < 1e-3 for row in timeline.staleness()["drift"])
    timeline.reconsolidate(guard=False)
    assert {name: len(rows) for name, rows in keys_at(timeline, second).items()} == alone


def keys_at(timeline: Timeline, fact: Fact) -> Mapping[str, np.ndarray]:
    """The keys of a live fact at the head, by module."""
    return timeline._solve().state().keys[fact.digest].rows
