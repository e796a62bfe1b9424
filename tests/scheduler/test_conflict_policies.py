"""Streams under each conflict policy, and a quarantine that killed runs neither lose nor double."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lifelong_edit.errors import UsageError
from lifelong_edit.facts import Fact, read_facts
from lifelong_edit.policies import FixedSize, Geometric
from lifelong_edit.scheduler import Scheduler, Summary
from lifelong_edit.timeline import Timeline
from tests.warm import Running

NewStore = Callable[[str], Path]
Program = Callable[..., Running]
Write = Callable[[str, Sequence[tuple[int, str]]], str]
STREAM = [(0, "Paris"), (1, "Paris"), (2, "Paris"), (0, "London"), (3, "Paris"), (1, "London"), (1, "Warsaw")]


def stream(store: Path, *files: str, size: int = 3, **options: Any) -> Summary:
    with Timeline.open(store) as timeline:
        scheduler = Scheduler(timeline, batching=FixedSize(size), **options)
        for _ in scheduler.run(read_facts(files)):
            pass
        return scheduler.summary


def held(store: Path, state: Any = "live") -> list[tuple[str, str]]:
    with Timeline.open(store, read_only=True) as timeline:
        return sorted((fact.subject[7:], fact.target) for fact in timeline.facts(state))


@pytest.mark.parametrize(
    ("policy", "live", "aside", "skipped"),
    [
        ("supersede", [("0", "London"), ("1", "Warsaw")], [], {}),
        ("reject", [("0", "Paris"), ("1", "Paris")], [], {"conflict": 3}),
        ("keep", [("0", "London"), ("0", "Paris"), ("1", "London"), ("1", "Paris"), ("1", "Warsaw")], [], {}),
        ("quarantine", [("0", "Paris"), ("1", "Paris")], [("0", "London"), ("1", "London"), ("1", "Warsaw")],
         {"quarantined": 3}),
    ],
)  # fmt: skip
def test_a_policy_for_a_run(
    new_store: NewStore,
    write_stream: Write,
    policy: str,
    live: list[tuple[str, str]],
    aside: list[tuple[str, str]],
    skipped: dict[str, int],
) -> None:
    store, path = new_store("a"), write_stream("a.jsonl", STREAM)
    done = stream(store, path, conflicts=policy)
    assert dict(done.skipped) == skipped
    assert held(store) == sorted([*live, ("2", "Paris"), ("3", "Paris")])
    assert held(store, "quarantined") == aside
    again = stream(store, path, conflicts=policy)
    assert (again.steps, again.skipped) == ([], {"consumed": 7})
    with pytest.raises(UsageError, match="conflict policy 'newest'"):
        stream(store, path, conflicts="newest")


def test_a_callable_judges_a_stream_and_a_second_run(new_store: NewStore, write_stream: Write) -> None:
    store, path = new_store("a"), write_stream("a.jsonl", STREAM)

    def judge(new: Fact, old: Fact, kind: str, probability: float) -> str | None:
        assert (kind, probability, new.subject) == ("contradiction", 1.0, old.subject)
        return "quarantine" if new.target == "London" else None

    done = stream(store, path, conflicts=judge, reconsolidation=Geometric(2))
    assert (done.conflicts, done.skipped) == ({"contradiction": 3}, {"quarantined": 2})
    assert done.reconsolidations + done.refused == 1  # a decision is no edit: only the others count
    assert held(store) == [("0", "Paris"), ("1", "Warsaw"), ("2", "Paris"), ("3", "Paris")]
    assert stream(store, path, conflicts=judge).steps == []

    def wrong(*_: object) -> str:
        return "whatever"

    other = write_stream("b.jsonl", [(2, "Rome"), (8, "Rome")])
    with pytest.raises(UsageError, match=r"found the answer 'whatever' of the callable .*wrong"):
        stream(store, other, conflicts=wrong)
    assert ("8", "Rome") not in held(store)  # nothing of the batch is applied
    assert stream(store, other, conflicts="keep").facts == 2


def test_dates_do_not_mind_how_a_stream_is_cut(new_store: NewStore, tmp_path: Path) -> None:
    """Within a batch, over batches and over files, in any order: the latest date holds."""
    said = [("Paris", "2020"), ("London", "2023-06"), ("Warsaw", "2021-05-05"), ("Paris", "2022")]
    lines = [
        json.dumps({"subject": "Vienna 0", "prompt": "The capital of Vienna 0 is", "target": target, "date": date})
        for target, date in said
    ]
    chance = random.Random(3)
    for number, size in enumerate((1, 4, 4)):
        chance.shuffle(lines)
        store, paths = new_store(f"store {number}"), [tmp_path / f"{number}a.jsonl", tmp_path / f"{number}b.jsonl"]
        for path, part in zip(paths, (lines[:2], lines[2:]), strict=True):
            path.write_text("\n".join(part))
            stream(store, str(path), size=size)
        assert held(store) == [("0", "London")]


def entries(store: Path) -> list[tuple[str, int]]:
    with Timeline.open(store, read_only=True) as timeline:
        return [(entry.fact.digest, entry.step) for entry in timeline.quarantined()]


def start(program: Program, store: Path, *arguments: str) -> Running:
    return program("stream", *arguments, "--store", store, "--batch-size", 2)


def run_killed(program: Program, store: Path, chance: random.Random, *arguments: str) -> None:
    """Killed in the middle, then started again and left alone."""
    with start(program, store, *arguments) as process:
        for _ in range(chance.randint(2, 4)):
            process.stdout.readline()
        time.sleep(chance.random() * 0.05)
        process.send_signal(signal.SIGKILL)
    with start(program, store, *arguments) as process:
        process.communicate()
        assert process.returncode == 0


def test_a_killed_run_neither_loses_nor_doubles_what_it_puts_aside(
    program: Program, new_store: NewStore, write_stream: Write
) -> None:
    """Nor does a killed run over the reviewed file edit anything twice."""
    whole, killed = new_store("whole"), new_store("killed")
    path = write_stream("a.jsonl", [(n, "Paris") for n in range(8)] + [(n, "London") for n in range(8)])
    with start(program, whole, path, "--conflicts", "quarantine") as process:
        process.communicate()
    chance = random.Random(7)
    run_killed(program, killed, chance, path, "--conflicts", "quarantine")
    assert entries(killed) == entries(whole)
    assert len(entries(killed)) == 8

    with Timeline.open(killed, read_only=True) as timeline:
        lines = [json.dumps(entry.as_record()) for entry in timeline.quarantined()]
    review = killed.parent / "review.jsonl"
    review.write_text("\n".join(lines[1:]))
    run_killed(program, killed, chance, str(review), "--reviewed")
    assert held(killed, "quarantined") == [("0", "London")]
    assert held(killed) == [("0", "Paris"), *((str(n), "London") for n in range(1, 8))]
    with Timeline.open(killed, read_only=True) as timeline:
        came = [digest for record in timeline.log() for digest in record.added]
    assert len(came) == len(set(came)) == 15


def test_a_bad_record_leaves_the_rest_of_its_batch_in_review(new_store: NewStore, write_stream: Write) -> None:
    store = new_store("a")
    stream(store, write_stream("a.jsonl", [(0, "Paris"), (1, "Paris")]))
    stream(store, write_stream("b.jsonl", [(0, "Rome"), (1, "Rome")]), conflicts="quarantine")
    with Timeline.open(store, read_only=True) as timeline:
        lines = [entry.as_record() for entry in timeline.quarantined()]
    lines[0] |= {"target": "Paris " * 80}
    review = store.parent / "review.jsonl"
    review.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = stream(store, str(review), reviewed=True, skip_bad=True)
    assert (len(done.bad), done.facts, dict(done.skipped)) == (1, 1, {})
    assert held(store) == [("0", "Paris"), ("1", "Rome")]
    assert held(store, "quarantined") == [("0", "Rome")]
