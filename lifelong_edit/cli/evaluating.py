"""What `eval` prints: tables of shares with their intervals, and of what was asked for besides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import click

from lifelong_edit.cli.common import counted, print_table, say

if TYPE_CHECKING:
    from lifelong_edit.eval.metrics.harness import TaskFigure
    from lifelong_edit.eval.metrics.intervals import Estimate
    from lifelong_edit.eval.reports.evaluated import BatchScores, Evaluation


def print_evaluation(found: Evaluation) -> None:
    """All tables; what was left out is said on stderr."""
    _print_batches([*found.batches, found.overall])
    click.echo()
    _print_ways(found.overall)
    if found.overall.comparisons is not None:
        click.echo()
        _print_comparisons([*found.batches, found.overall])
    click.echo()
    print_table(("perplexity", "base"), [(found.perplexity, found.base_perplexity)])
    if found.fluency is not None:
        click.echo()
        print_table(("fluency", "base"), [(_estimate(found.fluency.now, 2), _estimate(found.fluency.base, 2))])
    if found.matrices is not None:
        click.echo()
        _print_matrices(found)
    if found.tasks is not None:
        click.echo()
        _print_tasks(found.tasks)
    if found.dropped:
        say(f"{counted(found.dropped, 'neighbour')} left out: the stream edits what they ask for")
    if found.too_long:
        say(f"{counted(found.too_long, 'question')} left out: too long for the model")
    if found.overall.not_compared and found.overall.comparisons is not None:
        say(
            f"{counted(found.overall.not_compared, 'fact')} not compared: without a `target_true` other than the target"
        )


def _print_batches(batches: Sequence[BatchScores]) -> None:
    """One row a batch, and the last for all; what nobody asked has no column."""
    names, rows = [name for name, share in batches[-1].shares.items() if share.score.count], []
    for batch in batches:
        shares = [batch.shares[name] for name in names]
        cells = [_interval(s.score.generated, s.low.generated, s.high.generated) for s in shares]
        rows.append((_step(batch), batch.taught, batch.live, *cells, _finite(batch.divergence.value)))
    print_table(("step", "taught", "in force", *names, "KL"), rows)


def _print_ways(overall: BatchScores) -> None:
    ways = ("generated", "teacher_forced", "natural")
    rows = []
    for name, found in overall.shares.items():
        if not found.score.count:
            continue
        ends = (found.score, found.low, found.high)
        cells = [_interval(*(getattr(end, way) for end in ends)) for way in ways]
        if name == "locality":  # nobody looks there at how an answer ends
            cells[-1] = "-"
        rows.append((name, found.score.count, found.facts, *cells))
    print_table(("measure", "questions", "facts", "generated", "teacher-forced", "natural end"), rows)
    click.echo()
    kl = overall.divergence
    print_table(("KL(base ‖ edited) at neighbours, nats", "facts"), [(_estimate(kl, 3), kl.facts)])


def _print_comparisons(batches: Iterable[BatchScores]) -> None:
    rows = []
    for batch in batches:
        found: Mapping[str, Estimate] = batch.comparisons or {}
        rows.append((_step(batch), *(_share(estimate) for estimate in found.values())))
        names = tuple(found)
    print_table(("step", *names), rows)


def _print_matrices(found: Evaluation) -> None:
    columns = ("module", "‖W‖F / base", "‖W‖2 / base", "condition", "base", "‖ΔW‖F / ‖W₀‖F")
    rows = [
        (
            change.module,
            _finite(change.now.frobenius / change.base.frobenius),
            _finite(change.now.spectral / change.base.spectral),
            _finite(change.now.condition),
            _finite(change.base.condition),
            _finite(change.shift),
        )
        for change in found.matrices or ()
    ]
    print_table(columns, rows)


def _print_tasks(found: Iterable[TaskFigure]) -> None:
    columns = ("task", "questions", "metric", "now", "standard error", "base", "better")
    rows = []
    for f in found:
        better = None if f.higher_is_better is None else "higher" if f.higher_is_better else "lower"
        rows.append((f.task, f.questions, f.metric, f.now, f.now_error, f.base, better))
    print_table(columns, rows)


def _step(batch: BatchScores) -> str:
    return "all" if batch.step is None else str(batch.step)


def _share(estimate: Estimate) -> str:
    return _interval(estimate.value, estimate.low, estimate.high)


def _interval(value: float, low: float, high: float) -> str:
    """A share and its interval, as ".983 (.95–1.0)"; "-" where there was nothing to ask."""
    if value != value:
        return "-"
    return f"{_without_zero(value, 3)} ({_without_zero(low, 2)}–{_without_zero(high, 2)})"


def _without_zero(value: float, digits: int) -> str:
    """A number between −1 and 1 as short as it can be: ".95", "-.02", "1.0"."""
    text = f"{value:.{digits}f}"
    return f"{value:.{digits - 1}f}" if abs(float(text)) >= 1 else text.replace("0.", ".", 1)


def _estimate(estimate: Estimate, digits: int) -> str:
    if estimate.value != estimate.value:
        return "-"
    return f"{estimate.value:.{digits}f} ({estimate.low:.{digits}f}–{estimate.high:.{digits}f})"


def _finite(value: float) -> float | None:
    return None if value != value else value
