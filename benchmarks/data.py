"""The public data that most benchmarks read: a small model that knows real facts, its facts, ordinary text."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from benchmarks.common import shared
from lifelong_edit.facts import Fact, read_facts


def trex_model() -> Path:
    """The folder of trex-gpt2-mini, a model of 8 M parameters, and of its facts."""
    return shared("models", "trex-gpt2-mini")


def trex_file(split: Literal["train", "stream"]) -> Path:
    """The file of its facts: `train` to choose and to preserve by, `stream` to judge by."""
    return trex_model() / f"facts_{split}.jsonl"


def trex_facts(split: Literal["train", "stream"]) -> list[Fact]:
    """The facts of that file."""
    return [record.fact for record in read_facts([str(trex_file(split))])]


def wikitext_file(split: Literal["valid", "test"]) -> Path:
    """WikiText-2: `valid` for what a store measures at ordinary text, `test` to judge by."""
    return shared("data", "wikitext2", f"{split}.txt")


def wikitext(split: Literal["valid", "test"]) -> str:
    """The text of that file."""
    return wikitext_file(split).read_text(encoding="utf-8")
