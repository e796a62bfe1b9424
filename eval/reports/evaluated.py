"""What an evaluation found, and as plain values for JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lifelong_edit.eval.metrics.harness import TaskFigure
from lifelong_edit.eval.metrics.intervals import Estimate
from lifelong_edit.eval.metrics.matrices import MatrixChange
from lifelong_edit.eval.metrics.verdicts import Score

WAYS = {"generated": "generated", "teacher_forced": "teacher_forced", "natural": "natural_end"}
"""The shares of a Score, and what JSON calls them."""


@dataclass(frozen=True)
class Shares:
    """One measure's shares of right answers, with the ends of their 95 % intervals."""

    score: Score
    low: Score
    high: Score
    facts: int
    """How many facts have questions of this measure: the intervals are over them."""


@dataclass(frozen=True)
class BatchScores:
    """One batch's figures, or those of all batches together."""

    step: int | None
    """The step that taught the batch; None for all."""
    taught: int
    live: int
    """How many of its facts are still in force; only those are asked."""
    shares: Mapping[str, Shares]
    """By measure, see `questions.measures_of`; `chat_contained`: as `chat`, the target anywhere in the answer."""
    divergence: Estimate
    """KL(base ‖ edited) on the neighbours, in nats."""
    comparisons: Mapping[str, Estimate] | None = None
    """ES, EM, PS, PM, NS, NM (`probabilities`); None where they were not asked for."""
    not_compared: int = 0
    """Facts whose record keeps no true answer, or the new one as true."""

    @property
    def scores(self) -> Mapping[str, Score]:
        """The shares alone, by measure."""
        return {name: found.score for name, found in self.shares.items()}


@dataclass(frozen=True)
class Fluency:
    """Generation entropy in bits, of the edited and of the base model after the same prompts."""

    now: Estimate
    base: Estimate


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found at a state."""

    step: int
    weights_digest: str
    batches: tuple[BatchScores, ...]
    overall: BatchScores
    perplexity: float | None
    base_perplexity: float | None
    dropped: int
    """Distinct neighbours that were not asked, because the stream edits them."""
    too_long: int
    """Questions that were not asked, because the model cannot take them."""
    fluency: Fluency | None = None
    matrices: Sequence[MatrixChange] | None = None
    tasks: Sequence[TaskFigure] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values; a figure over no questions, or of a model that has collapsed, is None."""
        found: dict[str, Any] = {
            "step": self.step,
            "weights_digest": self.weights_digest,
            "batches": [_batch(batch) for batch in self.batches],
            "all": _batch(self.overall),
            "perplexity": self.perplexity,
            "base_perplexity": self.base_perplexity,
            "dropped_neighbours": self.dropped,
            "too_long": self.too_long,
        }
        if self.fluency is not None:
            found["fluency"] = {"now": estimate_json(self.fluency.now), "base": estimate_json(self.fluency.base)}
        if self.matrices is not None:
            found["matrices"] = [_matrix(change) for change in self.matrices]
        if self.tasks is not None:
            found["tasks"] = [_task(figure) for figure in self.tasks]
        return found


def estimate_json(estimate: Estimate) -> dict[str, Any]:
    """Value, low, high and facts."""
    return {name: _number(value) for name, value in asdict(estimate).items()}


def _batch(batch: BatchScores) -> dict[str, Any]:
    found: dict[str, Any] = {"step": batch.step, "taught": batch.taught, "live": batch.live}
    for name, shares in batch.shares.items():
        ends = {"low": _ways(shares.low), "high": _ways(shares.high)}
        found[name] = {"questions": shares.score.count, "facts": shares.facts, **_ways(shares.score), **ends}
    found["locality"]["kl"] = estimate_json(batch.divergence)
    if batch.comparisons is not None:
        found["probabilities"] = {name: estimate_json(estimate) for name, estimate in batch.comparisons.items()}
        found["probabilities"]["not_compared"] = batch.not_compared
    return found


def _matrix(change: MatrixChange) -> dict[str, Any]:
    sides = {"base": change.base, "now": change.now}
    figures = {side: {name: _number(value) for name, value in asdict(of).items()} for side, of in sides.items()}
    return {"module": change.module, **figures, "shift": _number(change.shift)}


def _task(figure: TaskFigure) -> dict[str, Any]:
    return {name: _number(value) if isinstance(value, float) else value for name, value in asdict(figure).items()}


def _ways(score: Score) -> dict[str, float | None]:
    return {shown: _number(getattr(score, name)) for name, shown in WAYS.items()}


def _number(value: float) -> float | None:
    return value if abs(value) < float("inf") else None
