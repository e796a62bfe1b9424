"""Real facts to edit into real models, with what is asked about each: CounterFact, zsRE, T-REx in ParaRel's words.

All stand in one shape, so that one benchmark serves them. Settings are chosen on training splits alone.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import common
from benchmarks.data import trex_facts
from lifelong_edit.facts import Fact


@dataclass(frozen=True)
class Case:
    """A fact as the editor gets it, and what is asked: `rephrase` and `phrasing`, which it never sees, a neighbour."""

    fact: Fact
    rephrase: str
    neighbour: str
    phrasing: str | None = None


def counterfact(split: str) -> list[Case]:
    """CounterFact with nothing but its prompts; its own rephrase and its neighbour are asked."""
    path = common.shared("data", "counterfact", f"counterfact-{split}.json")
    return [
        Case(
            Fact(subject=r["subject"], prompt=r["prompt"], target=r["target_new"]),
            r["rephrase_prompt"],
            r["locality_prompt"],
        )
        for r in _records(path)
    ]


def zsre(split: str) -> list[Case]:
    """ZsRE: questions with the answers to be taught; its rephrased question and another one are asked."""
    file = {"edit": "zsre_mend_eval_portability_gpt4.json", "train": "zsre_mend_train-1k.json"}[split]
    return [
        Case(
            Fact(subject=r["subject"], prompt=r["src"], target=r["alt"]),
            r["rephrase"],
            r["loc"].removeprefix("nq question: ").capitalize() + "?",
        )
        for r in _records(common.shared("data", "zsre", file))
        if r["alt"].strip()
    ]


def pararel(split: str, given: int) -> list[Case]:
    """T-REx facts with CounterFact's targets, in ParaRel's words: the last is asked, `given` of the others taught."""
    found = []
    for fact in trex_facts("train" if split == "train" else "stream"):
        wordings = [w for w in dict.fromkeys(fact.rephrases) if w != fact.prompt]
        if len(wordings) > given and fact.counterfact_rephrase and fact.locality:
            taught = Fact(
                subject=fact.subject, prompt=fact.prompt, target=fact.target, rephrases=tuple(wordings[:given])
            )
            found.append(Case(taught, fact.counterfact_rephrase, fact.locality[0].prompt, wordings[-1]))
    return found


CASES: dict[str, Callable[[int], list[Case]]] = {
    "edit": lambda given: counterfact("edit"),
    "train": lambda given: counterfact("train"),
    "zsre": lambda given: zsre("edit"),
    "zsre-train": lambda given: zsre("train"),
    "pararel": lambda given: pararel("edit", given),
    "pararel-train": lambda given: pararel("train", given),
}
"""Cases by name, from how many wordings of each fact may be given to the editor (ParaRel's alone)."""


def chosen(cases: Sequence[Case], count: int, seed: int) -> list[Case]:
    """`count` cases of different subjects, drawn by seed."""
    order = random.Random(seed).sample(range(len(cases)), len(cases))
    found: dict[str, Case] = {}
    for i in order:
        found.setdefault(cases[i].fact.subject.casefold(), cases[i])
        if len(found) == count:
            break
    return list(found.values())


def _records(path: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return found
