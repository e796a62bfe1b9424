"""Butterflies: single edits that break a model. Each fact is edited into the base model by itself, and taken back.

Yang et al. (arXiv 2402.09656) found facts of CounterFact with which one edit of ROME ruins a model, and perplexity to
tell them. This finds those of your facts, and then edits them with the gate in place: it has to refuse each.
"""

from __future__ import annotations

import argparse
from typing import Any

from watching import GREATEST, facts_of, options, store_of, watched, written

from lifelong_edit.errors import StepRefusedError
from lifelong_edit.facts import Fact
from lifelong_edit.timeline import Timeline


def alone(timeline: Timeline, fact: Fact) -> dict[str, Any]:
    """What a single edit does to the base model; the store stands at the base before and after."""
    told = {"fact": fact.digest, "prompt": fact.prompt, "target": fact.target}
    try:
        gate: Any = timeline.apply([fact], gate=watched, again=True).gate  # type: ignore[union-attr]
    except StepRefusedError as error:
        return {**told, "perplexity": GREATEST, "took": False, "error": str(error)}
    timeline.rollback(0, reason="each fact by itself")
    return {**told, "perplexity": gate.perplexity / gate.base_perplexity, "took": bool(gate.taken)}


def refused(timeline: Timeline, fact: Fact) -> bool:
    """Whether the store's own gate refuses the fact at the base model."""
    try:
        timeline.apply([fact], again=True)
    except StepRefusedError:
        return True
    timeline.rollback(0, reason="each fact by itself")
    return False


def main(told: argparse.Namespace) -> None:
    """For each rule how many facts are butterflies, the worst of them, and what the gate says."""
    facts, found = {fact.digest: fact for fact in facts_of(told)}, []
    told.pairs = [f"gate_perplexity={told.limit}", *told.pairs]
    for rule in told.rules:
        with store_of(told, rule) as timeline:
            edits = sorted((alone(timeline, fact) for fact in facts.values()), key=lambda edit: -edit["perplexity"])
            broken = [edit for edit in edits if edit["perplexity"] > told.limit]
            stopped = sum(refused(timeline, facts[edit["fact"]]) for edit in broken)
        print(
            f"{rule}: {len(broken)} of {len(edits)} facts break the model (perplexity beyond {told.limit:g} times the "
            f"base model's); the gate refuses {stopped} of them"
        )
        for edit in edits[: told.worst]:
            print(f"  {edit['perplexity']:10.4g}  {edit['prompt']} → {edit['target']}")
        found.append({"rule": rule, "limit": told.limit, "broken": len(broken), "refused": stopped, "edits": edits})
    written(told, found)


if __name__ == "__main__":
    parser = options("butterfly.py", str(__doc__), ("rome", "r-rome"))
    parser.add_argument("--limit", type=float, default=1.5, help="perplexity relative to the base model's")
    parser.add_argument("--worst", type=int, default=3, help="how many facts are shown")
    main(parser.parse_args())
