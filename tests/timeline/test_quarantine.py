"""Records that are put aside: kept by the log alone, edited once after review, and never twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lifelong_edit.errors import BadInputError, StoreError, UsageError
from lifelong_edit.facts import Fact, Record
from lifelong_edit.facts.shapes import Reader, entry_of
from lifelong_edit.timeline import Timeline

MakeFact = Callable[..., Fact]
Place = Callable[..., list[Record]]
Gate = Callable[..., dict[str, Any]]


@pytest.fixture
def careful(start_store: Callable[..., Timeline], tmp_path: Path, fact: MakeFact, lenient: Gate) -> Iterator[Timeline]:
    """A store whose policy is `quarantine`, with facts 0 to 2 in force."""
    with start_store(tmp_path / "careful", conflict_policy="quarantine") as timeline:
        timeline.apply([fact(0, "Paris"), fact(1, "Paris"), fact(2, "Paris")], gate=lenient)
        yield timeline


def back(timeline: Timeline, file: str, **changes: object) -> list[Record]:
    """What is in quarantine, as a reader gives it of the file that was written for review."""
    records = []
    for number, entry in enumerate(timeline.quarantined()):
        line = msgspec.json.decode(msgspec.json.encode(entry.as_record())) | changes
        (fact,) = Reader()(line).facts
        assert isinstance(fact, Fact)
        records.append(Record(fact, file, number + 1, file * 32, number, quarantined=entry_of(line)))
    return records


def test_a_contradiction_is_put_aside_with_what_it_met(
    careful: Timeline, fact: MakeFact, placed: Place, lenient: Gate
) -> None:
    before = careful.show(1)
    step = careful.apply(placed([fact(0, "Vienna"), fact(1, "Vienna")]), gate=lenient)
    assert (step.kind, step.parent, step.added, step.superseded) == ("decide", 1, (), ())
    assert (step.weights_digest, step.live_digest) == (before.weights_digest, before.live_digest)
    assert step.report["skipped"] == {"quarantined": 2}
    assert [place.number for place in step.places] == [0, 1]
    one, other = careful.quarantined()
    assert (one.fact, one.step, one.met) == (fact(0, "Vienna"), 2, [fact(0, "Paris")])
    assert other.fact == fact(1, "Vienna")
    assert careful.facts("quarantined") == [one.fact, other.fact]
    assert careful.status()["quarantined"] == 2
    found = [(c["step"], c["kind"], c["action"], c["by"], c["probability"], c["pending"]) for c in careful.conflicts()]
    assert found == [(2, "contradiction", "quarantine", "quarantine", 1.0, True)] * 2
    assert careful.quarantined(at=1) == careful.conflicts(at=1) == []
    # A batch that is edited in part: one step, both kept.
    step = careful.apply(placed([fact(2, "Vienna"), fact(3)], "b"), gate=lenient)
    assert (step.kind, step.added, step.report["skipped"]) == ("edit", (fact(3).digest,), {"quarantined": 1})
    assert [entry.step for entry in careful.quarantined()] == [2, 2, 3]


def test_nothing_is_put_aside_twice(careful: Timeline, fact: MakeFact, placed: Place, lenient: Gate) -> None:
    new = fact(0, "Vienna")
    careful.apply(placed([new]), gate=lenient)
    for records, reason in ((placed([new]), "consumed"), (placed([new], "b"), "quarantined"), ([new], "quarantined")):
        assert careful.sieve(records).counts() == {reason: 1}
        assert careful.apply(records, gate=lenient).step == 2
    # Not by another policy either: it waits for somebody.
    assert careful.apply([new], conflicts="supersede", gate=lenient).step == 2
    assert len(careful.quarantined()) == 1


def test_what_was_reviewed_supersedes_once(careful: Timeline, fact: MakeFact, placed: Place, lenient: Gate) -> None:
    careful.apply(placed([fact(0, "Vienna"), fact(1, "Vienna")]), gate=lenient)
    first, second = back(careful, "r")
    assert (first.fact, first.entry) == (fact(0, "Vienna"), fact(0, "Vienna").digest)
    step = careful.apply([first], reviewed=True, gate=lenient)
    assert (step.kind, step.added, step.superseded) == ("edit", (first.fact.digest,), (fact(0, "Paris").digest,))
    assert step.report["reviewed"] == [first.entry]
    assert [entry.fact for entry in careful.quarantined()] == [second.fact]  # what the file leaves out stays
    assert careful.sieve([first], reviewed=True).counts() == {"reviewed": 1}
    # Superseded since: an old file does not bring it back, wherever it lies.
    careful.apply([fact(0, "Warsaw")], conflicts="supersede", gate=lenient)
    for stale in (first, Record(first.fact, "s", 1, "s" * 32, 0, quarantined=first.entry), first.fact):
        assert careful.apply([stale], reviewed=True, gate=lenient).step == 4
    assert {f.target for f in careful.facts() if f.subject == first.fact.subject} == {"Warsaw"}


def test_a_line_that_stands_for_another_record_is_refused(
    careful: Timeline, fact: MakeFact, placed: Place, lenient: Gate
) -> None:
    """Otherwise one slip would take two records out of quarantine, one of them unseen."""
    careful.apply(placed([fact(0, "Vienna"), fact(1, "Vienna")]), gate=lenient)
    first, second = back(careful, "r")
    slip = Record(first.fact, "r.jsonl", 7, "r" * 32, 6, quarantined=second.entry)
    with pytest.raises(BadInputError, match=r"r\.jsonl:7: found a record that is in quarantine itself"):
        careful.apply([slip], reviewed=True, gate=lenient)
    assert [entry.fact for entry in careful.quarantined()] == [first.fact, second.fact]


def test_a_file_that_was_streamed_plainly_by_mistake_can_still_be_reviewed(
    careful: Timeline, fact: MakeFact, placed: Place, lenient: Gate
) -> None:
    careful.apply(placed([fact(0, "Vienna")]), gate=lenient)
    (record,) = back(careful, "r")
    careful.apply([record, *placed([fact(3)], "r", 1)], gate=lenient)
    assert (careful.sieve([record]).counts(), len(careful.quarantined())) == ({"consumed": 1}, 1)
    assert careful.apply([record], reviewed=True, gate=lenient).added == (record.fact.digest,)


def test_a_record_may_be_corrected_in_review(careful: Timeline, fact: MakeFact, placed: Place, lenient: Gate) -> None:
    careful.apply(placed([fact(0, "Vienna")]), gate=lenient)
    (record,) = back(careful, "r", target="Belgrade")
    step = careful.apply([record], reviewed=True, gate=lenient)
    assert (step.added, step.report["reviewed"]) == ((fact(0, "Belgrade").digest,), [fact(0, "Vienna").digest])
    assert careful.quarantined() == []
    # Corrected to what is in force: nothing to edit, but it has been reviewed.
    careful.apply(placed([fact(1, "Vienna")], "b"), gate=lenient)
    (record,) = back(careful, "s", target="Paris")
    step = careful.apply([record], reviewed=True, gate=lenient)
    assert (step.kind, step.report["skipped"], careful.quarantined()) == ("decide", {"live": 1}, [])
    with pytest.raises(Exception, match=r"conflicts --out"):
        Reader()({"subject": "a", "prompt": "a is", "target": "b", "quarantined": {}})


def test_dates_and_sources_decide_in_review_as_well(
    careful: Timeline, fact: MakeFact, placed: Place, lenient: Gate
) -> None:
    old = msgspec.structs.replace(fact(0, "Vienna"), date="2020")
    careful.apply(placed([old]), gate=lenient)
    newer = msgspec.structs.replace(fact(0, "Warsaw"), date="2021")
    careful.apply([newer], conflicts="supersede", gate=lenient)
    step = careful.apply(back(careful, "r"), reviewed=True, gate=lenient)
    assert [(c["action"], c["by"]) for c in step.report["conflicts"]] == [("outranked", "date")]
    assert (step.kind, careful.quarantined()) == ("decide", [])
    assert newer in careful.facts()


def test_dismissed_records_are_gone_until_they_are_asked_for(
    careful: Timeline, fact: MakeFact, placed: Place, lenient: Gate
) -> None:
    new = fact(0, "Vienna")
    careful.apply(placed([new, fact(1, "Vienna")]), gate=lenient)
    step = careful.dismiss([new.digest[:9]], reason="a hoax")
    assert (step.kind, step.reason, step.report["reviewed"]) == ("decide", "a hoax", [new.digest])
    assert step.weights_digest == careful.show(1).weights_digest
    assert careful.facts("quarantined") == [fact(1, "Vienna")]
    assert [c["pending"] for c in careful.conflicts()] == [False, True]
    assert careful.sieve(placed([new])).counts() == {"consumed": 1}
    careful.apply(placed([new], "b"), again=True, gate=lenient)
    assert [entry.step for entry in careful.quarantined()] == [2, 4]
    for name, told in (
        ("", "too short"),
        ("3", "too short"),
        ("x" * 9, "names no record"),
        (fact(0).digest, "names no record"),
    ):
        with pytest.raises(UsageError, match=told):
            careful.dismiss([name])
    with pytest.raises(UsageError, match="no record to dismiss"):
        careful.dismiss([])
    with pytest.raises(UsageError, match="facts can be live"):
        careful.facts("odd")  # type: ignore[arg-type]


def test_quarantine_follows_rollbacks_and_reopenings(
    careful: Timeline, fact: MakeFact, placed: Place, lenient: Gate
) -> None:
    records = placed([fact(0, "Vienna")])
    careful.apply(records, gate=lenient)
    (record,) = back(careful, "r")
    edited = careful.apply([record], reviewed=True, gate=lenient)
    careful.rollback(2)
    assert [entry.fact for entry in careful.quarantined()] == [record.fact]
    assert careful.sieve([record], reviewed=True).counts() == {"rolled-back": 1}
    again = careful.apply([record], reviewed=True, again=True, gate=lenient)
    assert again.weights_digest == edited.weights_digest
    careful.rollback(1)
    assert careful.quarantined() == []
    assert careful.sieve(records).counts() == {"rolled-back": 1}
    assert careful.apply(records, again=True, gate=lenient).kind == "decide"
    path = careful.path
    careful.close()
    with Timeline.open(path, read_only=True) as reopened:
        (entry,) = reopened.quarantined()
        assert (entry.fact, entry.met) == (record.fact, [fact(0, "Paris")])
        assert reopened.weights(reopened.head).keys() == reopened.weights(1).keys()
        with pytest.raises(StoreError, match="read-only"):
            reopened.dismiss([entry.fact])


def test_what_follows_a_decision_is_as_if_it_had_not_been(
    careful: Timeline, fact: MakeFact, placed: Place, lenient: Gate
) -> None:
    """A decision makes no state of its own: draws depend on weights and facts, never on step numbers."""
    plain = careful.apply([fact(5), fact(6)], gate=lenient)
    careful.rollback(1)
    decided = careful.apply(placed([fact(0, "Vienna")]), gate=lenient)
    assert careful.apply([fact(5), fact(6)], again=True, gate=lenient).weights_digest == plain.weights_digest
    assert careful.history().edits(careful.head)[0] == 2
    reconsolidated = careful.reconsolidate(guard=False)
    careful.rollback(decided.step)
    careful.apply([fact(5), fact(6)], again=True, gate=lenient)
    assert careful.reconsolidate(guard=False).weights_digest == reconsolidated.weights_digest
    assert len(careful.quarantined()) == 1


def test_dismissing_after_a_rollback_goes_on_from_there(
    careful: Timeline, fact: MakeFact, placed: Place, lenient: Gate
) -> None:
    plain = careful.apply([fact(6)], gate=lenient)
    careful.rollback(1)
    aside = careful.apply(placed([fact(0, "Vienna")]), gate=lenient)
    careful.apply([fact(5)], gate=lenient)
    careful.rollback(aside.step)
    careful.dismiss([fact(0, "Vienna")])
    again = careful.apply([fact(6)], again=True, gate=lenient)
    assert (again.weights_digest, again.live_digest) == (plain.weights_digest, plain.live_digest)


def test_what_is_turned_away_is_logged(timeline: Timeline, fact: MakeFact, placed: Place, lenient: Gate) -> None:
    dated = [
        msgspec.structs.replace(fact(0, target), date=date) for target, date in (("Paris", "2021"), ("Rome", "2020"))
    ]
    timeline.apply([dated[0], fact(1, "Paris")], gate=lenient)
    step = timeline.apply(placed([dated[1]]), gate=lenient)
    assert (step.kind, step.report["skipped"]) == ("decide", {"conflict": 1})
    step = timeline.apply(placed([fact(1, "Rome")], "b"), conflicts="reject", gate=lenient)
    assert step.kind == "decide"
    found = timeline.conflicts()
    assert [(c["step"], c["action"], c["by"]) for c in found] == [(2, "outranked", "date"), (3, "reject", "reject")]
    assert {timeline.facts_of(found)[c["new"]].target for c in found} == {"Rome"}
    # What brings nothing is no decision worth a step.
    assert timeline.apply([msgspec.structs.replace(dated[0], id="again")], gate=lenient).step == 3


def test_in_one_batch_dates_and_sources_decide_as_well(
    start_store: Callable[..., Timeline], tmp_path: Path, fact: MakeFact, lenient: Gate
) -> None:
    def dated(target: str, date: str, source: str | None = None) -> Fact:
        return msgspec.structs.replace(fact(0, target), date=date, source=source)

    with start_store(tmp_path / "store", trusted_sources=("registry",)) as timeline:
        late, later = dated("Paris", "2019"), dated("Vienna", "2020")
        for batch in ([late, later], [later, late], [later, late, later], [late, dated("Paris", "2018"), later]):
            assert timeline.sieve(batch).facts == [later]
        assert timeline.sieve([fact(0, "Paris"), fact(0, "Vienna")]).facts == [fact(0, "Vienna")]
        # As in two batches: what is there first stays.
        refused = timeline.sieve([fact(0, "Paris"), fact(0, "Vienna")], conflicts="reject")
        assert refused.facts == [fact(0, "Paris")]
        said = dated("Rome", "1990", "Registry")
        for batch in ([said, later], [later, said]):
            assert timeline.sieve(batch).facts == [said]
        timeline.apply([said], gate=lenient)
        step = timeline.apply([later], gate=lenient)
        assert [(c["action"], c["by"]) for c in step.report["conflicts"]] == [("outranked", "source")]


def test_a_callable_decides_and_the_log_says_so(timeline: Timeline, fact: MakeFact, lenient: Gate) -> None:
    def judge(new: Fact, old: Fact, kind: str, probability: float) -> str:
        return {"Vienna": "quarantine", "Rome": "keep"}.get(new.target, "newest")

    timeline.apply([fact(0, "Paris"), fact(1, "Paris")], gate=lenient)
    before = timeline.status()
    with pytest.raises(UsageError, match=r"found the answer 'newest' of the callable .*judge to a contradiction"):
        timeline.apply([fact(0, "Vienna"), fact(1, "Warsaw"), fact(2)], conflicts=judge, gate=lenient)
    assert {**timeline.status(), "bytes": 0} == {**before, "bytes": 0}
    with pytest.raises(UsageError, match="expected one of supersede, reject, keep, quarantine"):
        timeline.apply([fact(0, "Vienna")], conflicts="newest", gate=lenient)
    preview = timeline.preview([fact(0, "Vienna")], conflicts=judge, gate=lenient)
    assert preview is not None and preview["skipped"] == {"quarantined": 1}
    assert timeline.head == 1
    step = timeline.apply([fact(0, "Vienna"), fact(1, "Rome")], conflicts=judge, gate=lenient)
    assert [c["action"] for c in step.report["conflicts"]] == ["quarantine", "keep"]
    assert all(c["by"].startswith("callable ") and c["by"].endswith("judge") for c in step.report["conflicts"])
    assert step.added == (fact(1, "Rome").digest,)


def test_a_sieved_batch_says_how_it_is_handled(timeline: Timeline, fact: MakeFact, lenient: Gate) -> None:
    old, new = fact(0, "Paris"), fact(0, "Vienna")
    timeline.apply([old], gate=lenient)
    assert timeline.apply(timeline.sieve([new], conflicts="reject"), gate=lenient).kind == "decide"
    for late in ({"again": True}, {"reviewed": True}):
        with pytest.raises(UsageError, match=r"sieved without it"):
            timeline.apply(timeline.sieve([new]), gate=lenient, **late)  # type: ignore[arg-type]
    # The policy is asked after the sieve, so it may be said after it.
    assert timeline.apply(timeline.sieve([new], conflicts="reject"), conflicts="keep", gate=lenient).added
    assert timeline.facts() == [old, new]
