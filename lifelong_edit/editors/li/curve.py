"""What becomes of facts, of preserved answers and of ordinary text as a change of weights is let in by degrees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from lifelong_edit.bench import Bench
from lifelong_edit.eval.metrics.verdicts import predict_answers
from lifelong_edit.models import Encoded
from lifelong_edit.tracing.rows import Row


@dataclass(frozen=True)
class Point:
    """The model with a share `alpha` of a change. efficacy, locality: shares of rows, teacher-forced.

    efficacy: of the facts' rows those of which each token is predicted. locality: of the preserved prompts those of
    which each token of the base model's answer still is. perplexity: on the store's windows of ordinary text.
    """

    alpha: float
    efficacy: float
    locality: float
    perplexity: float

    @property
    def score(self) -> float:
        """By which points are compared: the mean of efficacy and locality."""
        return (self.efficacy + self.locality) / 2


def robustness_curve(
    bench: Bench,
    before: Mapping[str, Tensor],
    change: Mapping[str, Tensor],
    facts: Sequence[Row],
    kept: Sequence[Row],
    alphas: Sequence[float],
) -> list[Point]:
    """A point for each share of a change, as the published curves have them (1-LI, arXiv 2303.00046).

    before, change: ΔW and what is added to it, by module (d_in, d_out). kept: rows whose answers are the base model's.
    Without rows of a kind their share is 1.
    """
    windows, found = bench.guard_windows.to(bench.loaded.device), []
    for alpha in alphas:
        with bench.loaded.at(interpolated(before, change, alpha)):
            efficacy, locality = (_right(bench, [row.encoded for row in rows]) for rows in (facts, kept))
            found.append(Point(alpha, efficacy, locality, bench.task.health(bench.loaded, windows)))
    return found


def interpolated(before: Mapping[str, Tensor], change: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """ΔW + α · change, by module."""
    return {name: before[name] + alpha * moved if name in before else alpha * moved for name, moved in change.items()}


def _right(bench: Bench, encoded: Sequence[Encoded]) -> float:
    """The share of answers of which each token is the most probable one."""
    if not encoded:
        return 1.0
    said = predict_answers(bench.loaded, encoded)
    return sum(tuple(guess) == e.answer for guess, e in zip(said, encoded, strict=True)) / len(encoded)
