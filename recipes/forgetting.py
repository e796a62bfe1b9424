"""Gradual and catastrophic forgetting: facts edited in one at a time, until the model breaks or they are at an end.

Gupta et al. (arXiv 2401.07453) found that rules such as ROME and MEMIT first forget by and by and then all at once. For
each rule this says at which fact it broke, and whether the gate would have refused a fact before.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, field
from typing import Any

from watching import GREATEST, facts_of, options, store_of, watched, written

from lifelong_edit.errors import StepRefusedError
from lifelong_edit.facts import Fact
from lifelong_edit.judging.gate import answers_taken
from lifelong_edit.timeline import Timeline

WORN = 1.1
"""The multiple of the base model's perplexity at which a report says that a model is wearing down."""


@dataclass
class Course:
    """How it went with a rule. Numbers are those of facts, from 1.

    worn, alarm: the first with which perplexity was beyond WORN, and beyond what the gate allows. broke: the first at
    which fewer than half of the facts that had taken were still answered, or weights were no numbers. curve: after each
    fact perplexity relative to the base model's, and where it was asked the share of what had taken that is kept.
    """

    rule: str
    facts: int = 0
    taken: int = 0
    worn: int | None = None
    alarm: int | None = None
    broke: int | None = None
    curve: list[dict[str, float | None]] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """Whether the alarm came in time."""
        if self.broke is None:
            return "did not break" if self.alarm is None else "the gate would have stopped it; facts are answered still"
        if self.alarm is None:
            return "broke without an alarm"
        return "the gate would have stopped it before" if self.alarm <= self.broke else "the alarm came too late"


def went(timeline: Timeline, facts: list[Fact], rule: str, every: int) -> Course:
    """Edit facts in one at a time; ask after each `every` of them for all that had taken."""
    course, taken, allowed = Course(rule), list[Fact](), timeline.settings.gate_perplexity
    for number, fact in enumerate(facts, 1):
        ratio = _edited(timeline, fact, taken)
        course.facts, course.taken = number, len(taken)
        course.worn = course.worn or (number if ratio > WORN else None)
        course.alarm = course.alarm or (number if ratio > allowed else None)
        kept = None
        if taken and ratio < GREATEST and (number % every == 0 or number == len(facts)):
            with timeline.bench().loaded.at(timeline.overlay(timeline.head)) as loaded:
                kept = sum(answers_taken(loaded, taken)) / len(taken)
        course.curve.append({"perplexity": ratio, "kept": kept})
        if ratio >= GREATEST or (kept is not None and kept < 0.5):
            course.broke = number
            break
    return course


def _edited(timeline: Timeline, fact: Fact, taken: list[Fact]) -> float:
    """Perplexity after a fact, relative to the base model's; the fact is put among those taken where it did."""
    try:
        gate: Any = timeline.apply([fact], gate=watched).gate  # type: ignore[union-attr]
    except StepRefusedError:
        return GREATEST  # not even the rule can go on
    if gate.taken:
        taken.append(fact)
    return min(GREATEST, float(gate.perplexity / gate.base_perplexity))


def main(told: argparse.Namespace) -> None:
    """A line for each rule."""
    facts, found = facts_of(told), list[Course]()
    for rule in told.rules:
        with store_of(told, rule) as timeline:
            found.append(went(timeline, facts, rule, told.every))
        course = found[-1]
        print(
            f"{rule}: {course.taken} of {course.facts} facts took; worn at {course.worn}, alarm at {course.alarm}, "
            f"broke at {course.broke}: {course.verdict}"
        )
    written(told, [asdict(course) | {"verdict": course.verdict} for course in found])


if __name__ == "__main__":
    parser = options("forgetting.py", str(__doc__), ("rome", "memit"))
    parser.add_argument("--every", type=int, default=10, help="ask for all facts after so many")
    main(parser.parse_args())
