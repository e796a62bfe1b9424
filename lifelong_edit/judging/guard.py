"""The judge of a reconsolidation: it must not lose what the state before it had."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import msgspec

from lifelong_edit.bench import Bench
from lifelong_edit.facts import Fact
from lifelong_edit.judging.gate import answers_taken
from lifelong_edit.tracing.rows import draw, subjects_of, unseen_of

SAMPLE = 200
"""Live facts that are asked."""
LOCALITY_BOUND = 0.01
"""By how much the share of guard prompts with the base model's answer may fall, and by one standard error at least."""
PERPLEXITY_BOUND = 1.01
"""By what factor perplexity on the store's sample may rise."""


@dataclass(frozen=True)
class Figures:
    """What is measured, by greedy generation. locality: NaN without guard prompts."""

    retention: float
    """Share of right answers: the facts' own prompts, and for each one phrasing that is no row, where there is one; NaN
    without facts."""
    asked: int
    locality: float
    guards: int
    """Guard prompts asked."""
    perplexity: float


def measure(bench: Bench, phrasings: int, facts: Sequence[Fact], identity: str) -> Figures:
    """The figures of the model as it stands, on a sample of the live facts drawn by `identity`.

    phrasings: how many rephrases of a fact the rule takes as rows (`Editor.phrasings`): others are asked.
    """
    share, asked = retention(bench, phrasings, facts, identity)
    locality, guards = _locality(bench, subjects_of(facts))
    return Figures(share, asked, locality, guards, bench.task.health(bench.loaded, bench.guard_windows))


def retention(bench: Bench, phrasings: int, facts: Sequence[Fact], identity: str) -> tuple[float, int]:
    """Share of right answers of the model as it stands (see `Figures`), and how many were asked for.

    The sample is drawn by `identity`, whatever the order of the facts; of none the share is NaN.
    """
    if not facts:
        return math.nan, 0
    ordered = sorted(facts, key=lambda fact: fact.digest)
    sample = [ordered[i] for i in draw(len(ordered), SAMPLE, "guard", bench.settings.seed, identity)]
    asked = [*sample, *(other for fact in sample if (other := _unseen(fact, phrasings)) is not None)]
    taken = answers_taken(bench.loaded, asked)
    return sum(taken) / len(taken), len(taken)


def objections(before: Figures, after: Figures) -> list[str]:
    """Why a reconsolidation should not be committed; empty where nothing speaks against it."""
    found = []
    if after.retention < before.retention - _error(before.retention, before.asked):
        found.append(f"retention falls from {before.retention:.3f} to {after.retention:.3f}")
    # Of 150 prompts a point is one and a half: a bound below what the draw of prompts decides would refuse by chance.
    if after.locality < before.locality - max(LOCALITY_BOUND, _error(before.locality, before.guards)):
        found.append(f"locality on guard prompts falls from {before.locality:.3f} to {after.locality:.3f}")
    if not after.perplexity <= PERPLEXITY_BOUND * before.perplexity:  # NaN is beyond every bound
        found.append(f"perplexity rises from {before.perplexity:.1f} to {after.perplexity:.1f}")
    return found


def _error(share: float, asked: int) -> float:
    """The standard error of a share of right answers; of one answer in so many where all or none are right."""
    return math.sqrt(max(share * (1 - share), 1 / asked) / asked) if asked else 0.0


def as_report(before: Figures, after: Figures) -> dict[str, dict[str, float | None]]:
    """Both sets of figures as JSON values, which know no NaN and no infinity."""
    return {
        name: {key: value if math.isfinite(value) else None for key, value in asdict(figures).items()}
        for name, figures in (("before", before), ("after", after))
    }


def _unseen(fact: Fact, rows: int) -> Fact | None:
    """The fact asked in a phrasing that is no row of any solve."""
    free = unseen_of(fact, rows)
    return msgspec.structs.replace(fact, prompt=free[0], question=None) if free else None


def _locality(bench: Bench, subjects: frozenset[str]) -> tuple[float, int]:
    """Share of the guard prompts, which are never rows, that the model answers as the base model does; their number."""
    prompts, guard = bench.preserved, bench.preserved.guards(subjects)
    if not guard:
        return math.nan, 0
    answers = [prompts.answers[i].ids for i in guard]
    questions = [prompts.question(i) for i in guard]
    found = bench.task.answer(bench.loaded, questions, [len(ids) for ids in answers])
    return sum(g.with_end == ids for g, ids in zip(found, answers, strict=True)) / len(guard), len(guard)
