"""What the recipes of single edits share: their options, a store with an open gate, and what the gate would say."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lifelong_edit.bench import Bench, State
from lifelong_edit.editors.contract import Change
from lifelong_edit.editors.registry import rule_of
from lifelong_edit.facts import Fact, read_facts
from lifelong_edit.judging.gate import answers_taken, base_perplexity
from lifelong_edit.settings import settings_of
from lifelong_edit.timeline import Timeline

SAMPLE = Path(__file__).resolve().parents[1] / "facts"
GREATEST = 1e30
"""What stands for a perplexity that is no finite number."""


def options(recipe: str, what: str, rules: Sequence[str]) -> argparse.ArgumentParser:
    """The options that they have in common."""
    parser = argparse.ArgumentParser(prog=recipe, description=what)
    parser.add_argument("facts", nargs="*", help="files of facts; the sample facts in facts/ without any")
    parser.add_argument("--model", default="atlas", help="atlas (bundled), a folder or a hub id")
    parser.add_argument("--rules", nargs="+", default=list(rules), help="editing rules")
    parser.add_argument("--count", type=int, help="facts, from the first; all of them")
    parser.add_argument("--set", dest="pairs", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--out", type=Path, default=Path("out") / recipe.removesuffix(".py"), help="a folder")
    return parser


def facts_of(told: argparse.Namespace) -> list[Fact]:
    """The facts of the files that are named."""
    files = told.facts or [str(path) for path in sorted(SAMPLE.glob("*.jsonl"))]
    found = [record.fact for record in read_facts(files)]
    return found[: told.count]


def store_of(told: argparse.Namespace, rule: str) -> Timeline:
    """A new store of a rule. A contradiction keeps both facts: what is watched is the model, not what holds."""
    kind = rule_of(rule).settings
    given = {"editor": rule, "conflict_policy": "keep", **dict(pair.split("=", 1) for pair in told.pairs)}
    return Timeline.create(
        told.out / rule.replace("+", "-around-"), model=told.model, settings=settings_of(kind, given)
    )


def watched(bench: Bench, state: State, change: Change, facts: Sequence[Fact]) -> Mapping[str, Any]:
    """What the gate measures, as a gate that lets everything pass."""
    perplexity = bench.task.health(bench.loaded, bench.guard_windows)
    taken = answers_taken(bench.loaded, facts)
    return {
        "asked": len(taken),
        "taken": sum(taken),
        "untaken": [fact.digest for fact, took in zip(facts, taken, strict=True) if not took],
        "perplexity": perplexity if math.isfinite(perplexity) else GREATEST,
        "base_perplexity": base_perplexity(bench),
    }


def written(told: argparse.Namespace, found: object) -> None:
    """Keep what was found as JSON beside the stores."""
    path = told.out / "found.json"
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"all of it: {path}")
