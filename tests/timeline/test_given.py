"""What Python code hands to a timeline: taken in any usual form, refused in a sentence, and never half committed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
import pytest

from lifelong_edit.editors.registry import rule_of
from lifelong_edit.errors import BadInputError, LifelongEditError, UsageError
from lifelong_edit.facts import Fact, Probe
from lifelong_edit.stores import Decide, EditLog, fsck
from lifelong_edit.timeline import Timeline
from lifelong_edit.timeline.commit import UNMADE, Draft
from lifelong_edit.timeline.purging import purge
from lifelong_edit.timeline.review import purged_fact

MakeFact = Callable[..., Fact]
Gate = Callable[..., dict[str, Any]]
NAN = float("nan")


def rows(*facts: Fact) -> list[dict[str, Any]]:
    return [msgspec.to_builtins(fact) for fact in facts]


def test_a_table_is_edited_as_its_facts_are(
    start_store: Callable[..., Timeline], tmp_path: Path, batch: Any, lenient: Gate
) -> None:
    facts = batch(0)
    table = pd.DataFrame([row | {"source": None if i else "gazette"} for i, row in enumerate(rows(*facts))])
    assert table["source"].isna().any()
    with start_store(tmp_path / "facts") as one, start_store(tmp_path / "table") as other:
        plain = one.apply([msgspec.structs.replace(facts[0], source="gazette"), *facts[1:]], gate=lenient)
        step = other.apply(table, gate=lenient)
        assert (step.added, step.weights_digest) == (plain.added, plain.weights_digest)
        assert other.preview(iter(rows(*batch(1))), gate=lenient) is not None
        assert other.forecast(rows(*batch(1))[0]) is not None
        assert other.sieve(table).counts() == {"live": 3}
        taken = other.retract(table.iloc[:1])
        assert set(other.history().live(taken.step)) == set(step.added[1:])
        assert len(other.retract(facts[1]).superseded) == 1
        other.retract(step.added[2])
        assert other.facts() == []
    assert fsck(tmp_path / "table").sound


NO_BATCH: dict[str, Any] = {
    "a number": 5, "a file": "news.jsonl", "numbers": [5], "a probe": [Probe("x")], "other columns": [{"a": "b"}],
    "a number to teach": [{"subject": "a", "prompt": "b", "target": 5}],
    "no answer": pd.DataFrame({"subject": ["a"], "prompt": ["b"], "target": [NAN]}),
    "letters": [{"subject": "a", "prompt": "b", "target": "c", "rephrases": "Indonesia"}],
}  # fmt: skip


@pytest.mark.parametrize("name", NO_BATCH)
def test_what_is_no_batch_is_refused_and_nothing_committed(timeline: Timeline, name: str, lenient: Gate) -> None:
    calls: list[Callable[[Any], object]] = [
        timeline.sieve,
        timeline.forecast,
        timeline.retract,
        timeline.dismiss,
        lambda given: timeline.apply(given, gate=lenient),
        lambda given: timeline.preview(given, gate=lenient),
        lambda given: purge(timeline.path, given),
    ]
    for call in calls[:-1]:
        with pytest.raises((BadInputError, UsageError), match="expected"):
            call(NO_BATCH[name])
    assert timeline.head == 0
    timeline.close()
    with pytest.raises((BadInputError, UsageError), match="expected"):
        calls[-1](NO_BATCH[name])


@pytest.mark.parametrize("odd", [5, b"x", ["x"], "a\x00b", "\ud800"], ids=repr)
def test_reasons_names_and_authors_are_text_or_refused(timeline: Timeline, batch: Any, odd: Any, lenient: Gate) -> None:
    timeline.apply(batch(0), gate=lenient)
    calls: list[Callable[[], object]] = [
        lambda: timeline.apply(batch(1), gate=lenient, reason=odd),
        lambda: timeline.reconsolidate(reason=odd),
        lambda: timeline.retract(batch(0)[:1], reason=odd),
        lambda: timeline.dismiss(batch(0)[:1], reason=odd),
        lambda: timeline.rollback(0, reason=odd),
        lambda: timeline.tag("a", reason=odd),
        lambda: timeline.branch("a", reason=odd),
        lambda: timeline.switch("main", reason=odd),
        lambda: timeline.tag(odd),
        lambda: timeline.branch(odd),
        lambda: timeline.switch(odd),
        lambda: timeline.delete_tag(odd),
        lambda: timeline.delete_branch(odd),
        lambda: Timeline.open(timeline.path, read_only=True, author=odd),
    ]
    for call in calls:
        with pytest.raises(UsageError, match="expected"):
            call()
    assert timeline.head == 1


@pytest.mark.parametrize("odd", [None, 1.5, True, [1], {}, b"1"], ids=repr)
def test_a_step_is_a_number_or_a_name(timeline: Timeline, odd: Any) -> None:
    for call in (timeline.show, timeline.rollback, timeline.at, timeline.weights):
        with pytest.raises(UsageError, match="as a step"):
            call(odd)


@pytest.mark.parametrize(
    "given",
    [{"preserve": "prompts.txt"}, {"preserve": [5]}, {"preserve": 5}, {"text": "prose"}, {"text": [5]}, {"author": 5}],
    ids=str,
)
def test_a_store_is_not_made_of_what_is_no_prompt_or_text(tiny_gpt2: Path, tmp_path: Path, given: Any) -> None:
    with pytest.raises(LifelongEditError, match="expected"):
        Timeline.create(tmp_path / "store", model=str(tiny_gpt2), **given)
    assert not (tmp_path / "store").exists()


def test_a_rule_refuses_a_kind_of_model_that_it_does_not_edit(
    tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before weights are read, and where they had to be, before anything is measured."""
    picky = dataclasses.replace(rule_of("gradient"), tasks=frozenset[Any]({"masked"}))
    monkeypatch.setattr("lifelong_edit.editors.gradient.RULE", picky)
    said = "found a decoder, but the editing rule gradient edits masked language models alone; take such a model, or "
    said += "another rule"
    trusts: list[dict[str, Any]] = [{}, {"trust_remote_code": True, "revision": "0" * 40}]
    for trust in trusts:
        with pytest.raises(UsageError) as found:
            Timeline.create(tmp_path / "store", model=str(tiny_gpt2), text=["Some words."], **trust)
        assert str(found.value) == said
    assert not (tmp_path / "store").exists()


def test_nothing_is_written_that_is_read_back_as_another_fact(timeline: Timeline, fact: MakeFact) -> None:
    """Whoever got round the checks of `Fact`, what a step would name has to be in the log."""
    odd = fact(0)
    msgspec.structs.force_setattr(odd, "source", NAN)
    before = (timeline.path / "data.mdb").read_bytes()
    for one in (odd, purged_fact("1" * 32)):
        draft = Draft(record=Decide(**UNMADE | {"parent": 0}), weights=timeline.weights(0), aside=[one])
        with pytest.raises(BadInputError, match="cannot be kept"):
            timeline._commit(draft)
    assert timeline.head == 0 and (timeline.path / "data.mdb").read_bytes() == before


def test_a_store_that_an_earlier_release_kept_nan_in_can_be_lived_with(
    start_store: Callable[..., Timeline], tmp_path: Path, fact: MakeFact, lenient: Gate, monkeypatch: Any
) -> None:
    """Its fact goes by the name that the log has for it: it is shown, edited beside, and taken back."""
    odd = fact(0)
    msgspec.structs.force_setattr(odd, "source", NAN)
    with start_store(tmp_path / "store") as timeline:
        with monkeypatch.context() as patch:
            patch.setattr("lifelong_edit.timeline.commit.encode_fact", msgspec.json.encode)
            timeline.apply([odd, fact(1)], gate=lenient)
        with EditLog.open(tmp_path / "store", read_only=True) as log:
            assert b'"source":null' in log.facts([odd.digest])[odd.digest]
    with Timeline.open(tmp_path / "store") as timeline:
        assert [f.digest for f in timeline.facts()] == [odd.digest, fact(1).digest]
        assert timeline.facts_by_digest([odd.digest])[odd.digest].subject == odd.subject
        timeline.apply([fact(2), fact(0, "Vienna")], gate=lenient)
        assert odd.digest not in {f.digest for f in timeline.facts()}
        timeline.rollback(1)
        timeline.retract([odd.digest])
        assert [f.digest for f in timeline.facts()] == [fact(1).digest]
    (finding,) = fsck(tmp_path / "store").findings
    assert finding.record == f"facts/{odd.digest}" and finding.steps[0] == 1
