"""How much of each past batch a timeline's model still knows: efficacy, generality, locality, perplexity and more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from lifelong_edit import atlas
from lifelong_edit.eval.metrics.answers import base_divergences
from lifelong_edit.eval.metrics.fluency import continuations, generation_entropy
from lifelong_edit.eval.metrics.harness import Harness
from lifelong_edit.eval.metrics.intervals import Estimate, estimates
from lifelong_edit.eval.metrics.matrices import matrix_changes
from lifelong_edit.eval.metrics.probabilities import Compared, Comparison, compare, success_and_magnitude
from lifelong_edit.eval.metrics.verdicts import Result, Score, ask_any, ask_unchanged, base_answers
from lifelong_edit.eval.reports.evaluated import WAYS, BatchScores, Evaluation, Fluency, Shares
from lifelong_edit.eval.reports.questions import Batch, Question, batches_of, measures_of
from lifelong_edit.facts import Fact
from lifelong_edit.models import BASE, LoadedModel
from lifelong_edit.tasks import task_of
from lifelong_edit.timeline import Timeline
from lifelong_edit.timeline.locking import locked
from lifelong_edit.tracing.rows import draw

_CHUNK = 256
FLUENCY_FACTS = 100
"""After the prompts of so many live facts the model goes on writing."""

Answered = Mapping[tuple[bool, Question], tuple[Result, float]]
"""By question, neighbours (True) apart from facts (False): how it came out, and KL(base ‖ edited) at neighbours."""


@locked
def evaluate(
    timeline: Timeline,
    *,
    at: int | str | None = None,
    text: str | None = None,
    probabilities: bool = False,
    fluency: bool = False,
    matrices: bool = False,
    tasks: Harness | None = None,
    seed: int = 0,
    progress: Callable[[int], None] = lambda count: None,
) -> Evaluation:
    """Ask the model at a state (default: the head) about every batch on its line.

    Facts that were superseded since are not asked. Locality: every distinct neighbour whose prompt, and whose subject
    and relation, no fact of the line edits, has to get the answer of the untouched base model. text: for perplexity,
    by default bundled prose (None where the package has none). probabilities, fluency, matrices: what costs more, see
    the modules of these names; tasks: of lm-evaluation-harness, run as well. seed: of the intervals, and of what is
    drawn for fluency. progress is told how many questions were answered.
    """
    step = timeline.head if at is None else timeline.show(at).step
    with timeline.at(step).standing() as loaded:
        return _evaluated(timeline, loaded, step, text, probabilities, fluency, matrices, tasks, seed, progress)


def _evaluated(
    timeline: Timeline,
    loaded: LoadedModel,
    step: int,
    text: str | None,
    probabilities: bool,
    fluency: bool,
    matrices: bool,
    tasks: Harness | None,
    seed: int,
    progress: Callable[[int], None],
) -> Evaluation:
    batches, left = batches_of(timeline, loaded, step)
    results, measures = _answer(loaded, batches, progress), measures_of(loaded)
    compared = _compare(loaded, batches, progress) if probabilities else None
    perplexity, base = _perplexities(loaded, text)
    return Evaluation(
        step=step,
        weights_digest=timeline.show(step).weights_digest,
        batches=tuple(_score([batch], results, compared, batch.step, seed, measures) for batch in batches),
        overall=_score(batches, results, compared, None, seed, measures),
        perplexity=perplexity,
        base_perplexity=base,
        dropped=len(left.edited),
        too_long=len(left.too_long),
        fluency=_fluency(loaded, [fact for batch in batches for fact in batch.facts], seed) if fluency else None,
        matrices=matrix_changes(loaded) if matrices else None,
        tasks=None if tasks is None else tasks.run(loaded),
    )


def _answer(loaded: LoadedModel, batches: Sequence[Batch], progress: Callable[[int], None]) -> Answered:
    """The result of every distinct question."""
    asked = dict.fromkeys(
        (_of_neighbours(measure), question)
        for batch in batches
        for measure, questions in batch.questions.items()
        for question in questions
    )
    results: dict[tuple[bool, Question], tuple[Result, float]] = {}
    aliases = {question: others for batch in batches for question, others in batch.aliases.items()}
    for neighbours in (False, True):
        questions = [question for kind, question in asked if kind is neighbours]
        for start in range(0, len(questions), _CHUNK):
            chunk = questions[start : start + _CHUNK]
            answered = _ask_neighbours(loaded, chunk) if neighbours else _ask_facts(loaded, chunk, aliases)
            results.update({(neighbours, q): found for q, found in zip(chunk, answered, strict=True)})
            progress(len(chunk))
    return results


def _ask_facts(
    loaded: LoadedModel, chunk: Sequence[Question], aliases: Mapping[Question, Sequence[str]]
) -> list[tuple[Result, float]]:
    pairs = [(prompt, target or "") for prompt, target in chunk]
    others = {(prompt, target or ""): found for (prompt, target), found in aliases.items()}
    return [(result, float("nan")) for result in ask_any(loaded, pairs, others)]


def _ask_neighbours(loaded: LoadedModel, chunk: Sequence[Question]) -> list[tuple[Result, float]]:
    prompts, answers = [prompt for prompt, _ in chunk], base_answers(loaded, chunk)
    divergences = base_divergences(loaded, prompts, answers).tolist()
    return list(zip(ask_unchanged(loaded, prompts, answers), divergences, strict=True))


def _compare(
    loaded: LoadedModel, batches: Sequence[Batch], progress: Callable[[int], None]
) -> Mapping[Comparison, Compared]:
    kinds = (of for batch in batches for of in batch.comparisons.values())
    asked = list(dict.fromkeys(c for of in kinds for part in of.values() for c in part))
    results: dict[Comparison, Compared] = {}
    for start in range(0, len(asked), _CHUNK):
        results |= compare(loaded, asked[start : start + _CHUNK])
        progress(len(asked[start : start + _CHUNK]))
    return results


def _score(
    batches: Sequence[Batch],
    results: Answered,
    compared: Mapping[Comparison, Compared] | None,
    step: int | None,
    seed: int,
    measures: Sequence[str],
) -> BatchScores:
    shares = {}
    for measure in measures:
        owners = _owners(batches, measure)
        found = [results[_of_neighbours(measure), question] for question in owners]
        shares[measure] = _shares([result for result, _ in found], list(owners.values()), seed)
        if measure == "chat":
            anywhere = [replace(result, generated=result.contained) for result, _ in found]
            shares["chat_contained"] = _shares(anywhere, list(owners.values()), seed)
        if measure == "locality":
            values = np.array([divergence for _, divergence in found]).reshape(-1, 1)
            (divergence,) = estimates(values, list(owners.values()), seed)
    comparisons = [of for batch in batches for of in batch.comparisons.values()]
    live = sum(len(batch.facts) for batch in batches)
    return BatchScores(
        step=step,
        taught=sum(batch.taught for batch in batches),
        live=live,
        shares=shares,
        divergence=divergence,
        comparisons=None if compared is None else success_and_magnitude(comparisons, compared, seed),
        not_compared=live - len(comparisons),
    )


def _of_neighbours(measure: str) -> bool:
    return measure in ("locality", "chat_locality")


def _owners(batches: Sequence[Batch], measure: str) -> dict[Question, str]:
    """The distinct questions of a measure, each with the first fact that it is asked for."""
    owners: dict[Question, str] = {}
    for batch in batches:
        for question, fact in batch.questions[measure].items():
            owners.setdefault(question, fact)
    return owners


def _shares(results: Sequence[Result], owners: Sequence[str], seed: int) -> Shares:
    values = np.array([[getattr(result, way) for way in WAYS] for result in results], dtype=np.float64)
    found = dict(zip(WAYS, estimates(values.reshape(-1, len(WAYS)), owners, seed), strict=True))
    count, facts = len(results), len(set(owners))
    score, low, high = (
        Score(count=count, **{way: getattr(estimate, end) for way, estimate in found.items()})
        for end in ("value", "low", "high")
    )
    return Shares(score, low, high, facts)


def _fluency(loaded: LoadedModel, facts: Sequence[Fact], seed: int) -> Fluency:
    chosen = draw(len(facts), FLUENCY_FACTS, "fluency", seed)
    prompts = list(dict.fromkeys(facts[i].prompt for i in chosen))

    def entropies() -> Estimate:
        values = [generation_entropy(text) for text in continuations(loaded, prompts, seed)]
        return estimates(np.array(values).reshape(-1, 1), prompts, seed)[0]

    now = entropies()
    with loaded.at(BASE):
        return Fluency(now, entropies())


def _perplexities(loaded: LoadedModel, text: str | None) -> tuple[float | None, float | None]:
    if text is None:
        path = atlas.heldout_text_path()
        if not path.is_file():
            return None, None
        text = path.read_text(encoding="utf-8")
    task = task_of(loaded)
    windows = task.windows(loaded, text)
    found = task.health(loaded, windows)
    with loaded.at(BASE):
        return found, task.health(loaded, windows)
