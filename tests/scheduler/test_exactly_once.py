"""Each record of the input is decided once, however its file grew and wherever runs were cut off."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifelong_edit.facts import Record, read_facts
from lifelong_edit.policies import FixedSize, cut_with_pauses
from lifelong_edit.scheduler import Scheduler, Summary
from lifelong_edit.timeline import Timeline

NewStore = Callable[[str], Path]
Write = Callable[[str, Sequence[tuple[int, str]]], str]


def stream(store: Path, *files: str, size: int = 3, stop: int | None = None, cuts: Sequence[int] = ()) -> Summary:
    """One run, ended after `stop` batches; cuts: numbers of records before which a batch is cut short."""
    with Timeline.open(store) as timeline:
        records = read_facts(files, known=timeline.consumed_in)
        scheduler = Scheduler(timeline, batching=FixedSize(size))
        for number, _ in enumerate(scheduler.run(paused(records, cuts)), 1):
            if number == stop:
                break
        return scheduler.summary


def paused(records: Iterable[Record], cuts: Sequence[int]) -> Iterator[Record | None]:
    for number, record in enumerate(records):
        if number in cuts:
            yield None
        yield record


@dataclass
class Outcome:
    """What a store holds in the end."""

    live: dict[str, str]
    steps: list[tuple[str, tuple[str, ...]]]


def outcome(store: Path) -> Outcome:
    with Timeline.open(store, read_only=True) as timeline:
        live = {fact.subject: fact.target for fact in timeline.facts()}
        return Outcome(live, [(record.weights_digest, record.added) for record in timeline.log()])


def test_a_grown_file_does_not_bring_back_what_was_superseded(new_store: NewStore, write_stream: Write) -> None:
    store = new_store("a")
    news = [(0, "Paris"), (0, "London"), (1, "Warsaw")]
    stream(store, write_stream("a.jsonl", news), size=1)
    grown = stream(store, write_stream("a.jsonl", [*news, (2, "Paris")]), size=1)
    assert (grown.skipped, grown.facts) == ({"consumed": 3}, 1)
    assert outcome(store).live == {"Vienna 0": "London", "Vienna 1": "Warsaw", "Vienna 2": "Paris"}
    # What is new may say again what was superseded: that is news.
    assert stream(store, write_stream("a.jsonl", [*news, (2, "Paris"), (0, "Paris")])).facts == 1
    assert outcome(store).live["Vienna 0"] == "Paris"


def test_what_was_skipped_without_a_step_stays_consumed(new_store: NewStore, write_stream: Write) -> None:
    """A's second file brings nothing; after B, it still does not, though its run is over and made no step."""
    store = new_store("a")
    first = write_stream("a.jsonl", [(0, "Paris"), (1, "Paris")])
    second = write_stream("b.jsonl", [(1, "Paris"), (0, "Paris")])
    third = write_stream("c.jsonl", [(0, "London")])
    assert stream(store, first).facts == 2
    assert stream(store, second).skipped == {"live": 2}
    assert stream(store, third).facts == 1
    assert stream(store, first, second, third).skipped == {"consumed": 5}
    assert outcome(store).live == {"Vienna 0": "London", "Vienna 1": "Paris"}
    with Timeline.open(store) as timeline:  # consumed at the state of the first step, so not at that of the base
        timeline.rollback(0)
    assert stream(store, second).skipped == {"rolled-back": 2}


def test_overlapping_files(new_store: NewStore, write_stream: Write, tmp_path: Path) -> None:
    store = new_store("a")
    path = write_stream("a.jsonl", [(0, "Paris"), (1, "London"), (0, "Warsaw")])
    twice = stream(store, path, path)
    assert (twice.facts, twice.skipped["consumed"] + twice.skipped["live"] + twice.skipped["repeated"]) == (3, 3)
    assert outcome(store).live == {"Vienna 0": "Warsaw", "Vienna 1": "London"}
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(Path(path).read_bytes()))
    assert stream(store, str(packed)).skipped == {"consumed": 3}
    shared = stream(store, write_stream("b.jsonl", [(1, "London"), (2, "Paris")]))
    assert (shared.facts, shared.skipped) == (1, {"live": 1})


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("grown")


@settings(max_examples=8, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["Paris", "London"])), min_size=1, max_size=9),
    st.sets(st.integers(1, 8), max_size=3),
    st.lists(st.integers(1, 3), max_size=4),
)
def test_growth_and_kills_leave_what_one_run_with_those_cuts_leaves(
    room: Path, _template: Path, news: list[tuple[int, str]], cuts: set[int], stops: list[int]
) -> None:
    """A file that grows record by record, run after each growth, some of the runs cut off after a few batches."""
    from json import dumps

    facts = [{"subject": f"S {n}", "prompt": f"The capital of S {n} is", "target": target} for n, target in news]
    lines = [dumps(fact) + "\n" for fact in facts]
    calm, killed, path = room / "calm", room / "killed", room / "a.jsonl"
    for store in (calm, killed):
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(_template, store)
    lengths = [*sorted(cut for cut in cuts if cut < len(lines)), len(lines)]
    for length in lengths:
        path.write_text("".join(lines[:length]))
        for stop in stops:
            stream(killed, str(path), stop=stop)
        stream(killed, str(path))
    stream(calm, str(path), cuts=lengths)
    assert outcome(killed) == outcome(calm)
    stream(killed, str(path))
    assert outcome(killed) == outcome(calm)


def test_pauses_cut_batches_further_and_move_no_boundary() -> None:
    """Also where the batch at hand ends early, before a record that contradicts one in it."""

    @settings(max_examples=300)
    @given(
        st.lists(st.one_of(st.none(), st.tuples(st.integers(0, 3), st.sampled_from("xy"))), max_size=20),
        st.integers(1, 4),
    )
    def check(items: list[tuple[int, str] | None], size: int) -> None:
        from lifelong_edit.facts import Fact

        records = [
            None
            if item is None
            else Record(
                Fact(subject=f"s{item[0]}", prompt=f"p{item[0]}", target=item[1]), "f", number, "d" * 32, number
            )
            for number, item in enumerate(items)
        ]
        found = [[r.number for r in batch] for batch in cut_with_pauses(FixedSize(size), records)]
        whole = [[r.number for r in batch] for batch in FixedSize(size).cut([r for r in records if r is not None])]
        pauses = [number for number, record in enumerate(records) if record is None]
        expected = []
        for batch in whole:
            part = [batch[0]]
            for before, number in pairwise(batch):
                if any(before < pause < number for pause in pauses):
                    expected.append(part)
                    part = []
                part.append(number)
            expected.append(part)
        assert found == expected

    check()


def test_a_batch_is_given_out_as_soon_as_it_is_full(write_stream: Write) -> None:
    read: list[int] = []

    def records() -> Iterator[Record]:
        for record in read_facts([write_stream("a.jsonl", [(n, "Paris") for n in range(5)])]):
            read.append(record.number)
            yield record

    assert len(next(cut_with_pauses(FixedSize(2), records()))) == 2
    assert read == [0, 1]
