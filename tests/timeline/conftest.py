"""A store on a tiny GPT-2, and batches of facts for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lifelong_edit.facts import Fact, Probe, Record
from lifelong_edit.settings import Settings
from lifelong_edit.timeline import Timeline

PLACES = ("Paris", "London", "Vienna", "Warsaw", "Belgrade", "Sydney", "Kenya", "Japan")


def fact(number: int, target: str | None = None) -> Fact:
    """One of a series of facts about different subjects."""
    name = f"{PLACES[number % 8]} {number}"
    return Fact(
        subject=name,
        prompt=f"The capital of {name} is",
        target=target or PLACES[(number + 3) % 8],
        relation="capital",
        rephrases=(f"{name} has the capital",),
    )


def batch(start: int, size: int = 3) -> list[Fact]:
    """Facts `start` to `start + size - 1`."""
    return [fact(number) for number in range(start, start + size)]


def record(item: Fact, file: str, number: int) -> Record:
    """A fact at a place."""
    return Record(item, f"{file}.jsonl", number + 1, file * 16, number)


def lenient(*_: object) -> dict[str, Any]:
    """A gate that lets everything pass: a model with random weights is no judge of text."""
    return {"judge": "none"}


SETTINGS = Settings(
    passes=2, rehearse=4, preserved=4, c0=50.0, text_tokens=4000, phrasings=1, snapshot_every=3, micro_batch=8
)


@pytest.fixture(scope="session")
def start_store(tiny_gpt2: Path, sentences: list[str]) -> Callable[[Path], Timeline]:
    """Makes a store at a path."""

    def make(path: Path) -> Timeline:
        preserve = [Probe(prompt=s.rsplit(" ", 1)[0], subject=f"none {i}") for i, s in enumerate(sentences)]
        return Timeline.create(
            path, model=str(tiny_gpt2), settings=SETTINGS, preserve=preserve, text=[" ".join(sentences * 20)]
        )

    return make


@pytest.fixture
def timeline(start_store: Callable[[Path], Timeline], tmp_path: Path) -> Iterator[Timeline]:
    """A new store, closed at the end."""
    with start_store(tmp_path / "store") as made:
        yield made
