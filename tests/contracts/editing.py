"""What the grid of editing rules runs on: a row for each rule and way of asking, and the stores made for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lifelong_edit.editors.contract import Rule
from lifelong_edit.editors.registry import AROUND, RULES, core_of, rule_of
from lifelong_edit.facts import Fact, Record
from lifelong_edit.settings import StoreSettings

PLACES = ("Paris", "London", "Vienna", "Warsaw", "Belgrade", "Sydney", "Kenya", "Japan")
MODULES = ("0-1@subject", "2-3")
SMALL: dict[str, Any] = {
    "modules": MODULES,
    "more_passes": 0,
    "passes": 2,
    "rehearse": 4,
    "preserved": 4,
    "c0": 50.0,
    "text_tokens": 2000,
    "phrasings": 1,
    "snapshot_every": 3,
    "micro_batch": 8,
    "reconsolidation_passes": 2,
}
"""Settings for a model of four layers and width 32; a rule that has not all of them takes those that it has."""
LOCATED = ("memit", "memit-seq", "alphaedit", "nse", "rome", "r-rome", "emmet", "coachhook")
"""Rules that edit at the last token of the subject alone."""
_LOCATED: dict[str, Any] = {"modules": ("0-1@subject",), "contexts": 1, "steps": 3, "c0": 5.0, "rate": 0.2}
TUNED: dict[str, Any] = {"rate": 1e-2, "epochs": 3, "batch": 4, "epsilon": 1e-3}
IN_FRONT: dict[str, Any] = {"room": 11, "wording": r"{facts}\n{question}"}
"""Of rules that put facts before questions, in a context as small as a tiny model's."""
OPTIONS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(LOCATED, _LOCATED),
    **{name: {**_LOCATED, "modules": ("1@subject",)} for name in ("rome", "r-rome", "emmet")},
    "search": {
        "rounds": 3,
        "more_rounds": 0,
        "contexts": 2,
        "swapped": 1,
        "reconsolidation_rounds": 2,
        "reconsolidation_facts": 4,
        "precision": "float32",
    },
    "neurons": {
        "modules": ("1@subject",),
        "rounds": 6,
        "more_rounds": 2,
        "contexts": 2,
        "swapped": 1,
        "reconsolidation_rounds": 6,
        "reconsolidation_facts": 4,
        "precision": "float32",
    },
    "ft": TUNED,
    "ft-replay": {**TUNED, "replay": 3},
    "locft": TUNED,
    "li": {**TUNED, "grid": 2, "validation": 3},
    "grace": {"steps": 3, "rate": 0.3, "radius": 0.1},
    "retrieval": IN_FRONT,
    "serac": IN_FRONT,
    "wise": {"steps": 3, "contexts": 1, "relative_rate": 0.2, "shard": 2},
}
"""Settings that a rule needs beside them: a search in bfloat16 gives another change with each way of cutting its rows.
So does Adam where ε is no larger than the rounding of a gradient."""

WRAPPED = ("li+memit", "rect+memit-seq", "prune+ultraedit", "simie+gradient", "nas+alphaedit", "retrieval+neurons")
"""Each wrapper around a rule: of locate-then-edit, with keys that a solve reads, with moments, of the ridge family, and
with hooks and entries."""
_WRAPPING: dict[str, Any] = {"keep": 0.5, "bound": 0.01, "pilots": 4, "grid": 2, "validation": 3, **IN_FRONT}
"""Settings of wrappers, where a rule has them. The bound of `prune` is one that shifts of a tiny model exceed."""


@dataclass(frozen=True)
class Row:
    """A rule, and the solve in which it asks where it has several; empty where it has one."""

    name: str
    ask: str = ""

    def __str__(self) -> str:
        return f"{self.name}-{self.ask}" if self.ask else self.name

    @property
    def rule(self) -> Rule:
        """The declaration."""
        return rule_of(self.name)

    @property
    def form(self) -> str:
        """The form of the network that the rule asks with, where it needs one."""
        return self.name if self.name in ("mend", "rledit", "serac") else self.ask or "joint"

    def settings(self, **changes: Any) -> StoreSettings:
        """Small settings of the rule, some of them changed."""
        kind = self.rule.settings
        told = {"ask": self.ask} if self.ask else {}
        small = {name: value for name, value in SMALL.items() if name in kind.__struct_fields__}
        around = {name: value for name, value in _WRAPPING.items() if name in kind.__struct_fields__}
        own = OPTIONS.get(core_of(self.name), {})
        return kind(editor=self.name, **(small | (around if AROUND in self.name else {}) | own | told | changes))


def _rows() -> list[Row]:
    found = []
    for name in RULES:
        several = "ask" in rule_of(name).settings.__struct_fields__
        found += [Row(name, ask) for ask in ("joint", "published")] if several else [Row(name)]
    return found + [Row(name) for name in WRAPPED]


ROWS = _rows()


def fact(number: int, target: str | None = None) -> Fact:
    """One of a series of facts about different subjects, whose prompts differ in length."""
    name = PLACES[number % 8] + " the Great" * (number % 3) + f" {number}"
    return Fact(
        subject=name,
        prompt=f"The capital of {name} is",
        target=target or PLACES[(number + 3) % 8] + " on the river" * (number % 2),
        relation="capital",
        rephrases=(f"{name} has the capital",),
    )


def batch(number: int, size: int = 3) -> list[Fact]:
    """Facts of the series; batches of different numbers have none in common."""
    return [fact(number * size + i) for i in range(size)]


def placed(number: int) -> list[Record]:
    """The same as records of a file."""
    return [Record(f, "a.jsonl", 3 * number + i, "a" * 32, 3 * number + i) for i, f in enumerate(batch(number))]


GONE = [batch(0)[1], batch(2)[0]]
"""Facts of `batch(0)` and `batch(2)` that are retracted."""
KEPT = [one for number in (0, 1, 2) for one in batch(number) if one not in GONE]
"""What is left of the first three batches without them."""


def lenient(*_: object) -> dict[str, Any]:
    """A gate that lets everything pass: a model with random weights is no judge of text."""
    return {"judge": "none"}
