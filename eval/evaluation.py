"""How much of each past batch a timeline's model still knows: efficacy, generality, locality, perplexity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lifelong_edit import atlas
from lifelong_edit.errors import BadInputError
from lifelong_edit.eval.metrics import Result, Score, ask_pairs, ask_unchanged, base_answers, summarise
from lifelong_edit.eval.perplexity import perplexity_of, text_windows
from lifelong_edit.facts import Fact
from lifelong_edit.models import LoadedModel, encode, encode_prompt
from lifelong_edit.policies import edited_identities, probe_identities
from lifelong_edit.rows import phrasings_of
from lifelong_edit.timeline import Timeline

MEASURES = ("efficacy", "generality", "unseen", "wrapped", "portability", "locality")
_CHUNK = 256

Question = tuple[str, str | None]
"""A prompt, and the answer that is wanted (of a neighbour: the one that it came with, if any)."""


@dataclass(frozen=True)
class BatchScores:
    """One batch's figures, or those of all batches together."""

    step: int | None
    """The step that taught the batch; None for all."""
    taught: int
    live: int
    """How many of its facts are still in force; only those are asked."""
    scores: Mapping[str, Score]
    """By measure, see MEASURES."""


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

    def to_json(self) -> dict[str, Any]:
        """Plain values; a share over no questions is None."""
        return {
            "step": self.step,
            "weights_digest": self.weights_digest,
            "batches": [_plain(batch) for batch in self.batches],
            "all": _plain(self.overall),
            "perplexity": self.perplexity,
            "base_perplexity": self.base_perplexity,
            "dropped_neighbours": self.dropped,
            "too_long": self.too_long,
        }


@dataclass
class _Batch:
    """The questions of one batch, by measure."""

    step: int
    taught: int
    live: int
    questions: dict[str, list[Question]] = field(default_factory=dict)


def evaluate(
    timeline: Timeline,
    *,
    at: int | str | None = None,
    text: str | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> Evaluation:
    """Ask the model at a state (default: the head) about every batch on its line.

    Facts that were superseded since are not asked. Locality: every distinct neighbour whose prompt, and whose subject
    and relation, no fact of the line edits, has to get the answer of the untouched base model. text: for perplexity,
    by default bundled prose (None where the package has none). progress is told how many questions were answered.
    """
    step = timeline.head if at is None else timeline.show(at).step
    loaded = timeline.at(step).loaded()
    line = timeline.history().line(step)
    facts = timeline.facts_by_digest([digest for record in line for digest in record.added])
    live = timeline.history().fold(step).live
    last = {digest: record.step for record in line for digest in record.added}
    edited = edited_identities(facts.values())
    batches, dropped, long = [], set[str](), set[Question]()
    for record in line:
        if record.added:
            # A fact that came, went and came again counts for the step that taught it last.
            asked = [facts[digest] for digest in record.added if digest in live and last[digest] == record.step]
            batch = _Batch(record.step, len(record.added), len(asked))
            _collect(batch, asked, timeline.settings.phrasings, edited, dropped)
            for measure, questions in batch.questions.items():
                fits = [q for q in dict.fromkeys(questions) if _fits(loaded, q)]
                long |= set(questions) - set(fits)
                batch.questions[measure] = fits
            batches.append(batch)
    results = _answer(loaded, batches, progress)
    perplexity, base = _perplexities(loaded, text)
    return Evaluation(
        step=step,
        weights_digest=timeline.show(step).weights_digest,
        batches=tuple(_score([batch], results, batch.step) for batch in batches),
        overall=_score(batches, results, None),
        perplexity=perplexity,
        base_perplexity=base,
        dropped=len(dropped),
        too_long=len(long),
    )


def _collect(batch: _Batch, facts: Sequence[Fact], rows: int, edited: set[tuple[str, ...]], dropped: set[str]) -> None:
    found: dict[str, list[Question]] = {measure: [] for measure in MEASURES}
    for fact in facts:
        taught = {fact.prompt, *phrasings_of(fact, rows)}
        others = [prompt for prompt in dict.fromkeys(fact.rephrases) if prompt != fact.prompt]
        found["efficacy"].append((fact.prompt, fact.target))
        found["generality"] += [(prompt, fact.target) for prompt in others]
        found["unseen"] += [(prompt, fact.target) for prompt in others if prompt not in taught]
        if fact.counterfact_rephrase is not None:
            found["wrapped"].append((fact.counterfact_rephrase, fact.target))
        found["portability"] += [(probe.prompt, probe.target) for probe in fact.portability if probe.target]
        for probe in fact.locality:
            if edited.isdisjoint(probe_identities(probe, fact)):
                found["locality"].append((probe.prompt, probe.target))
            else:
                dropped.add(probe.prompt)
    batch.questions = found


def _fits(loaded: LoadedModel, question: Question) -> bool:
    prompt, target = question
    try:
        if target is not None:
            encode(loaded.tokenizer, prompt, target)
            return True
        return len(encode_prompt(loaded.tokenizer, prompt)) < loaded.context
    except BadInputError:
        return False


def _answer(
    loaded: LoadedModel, batches: Sequence[_Batch], progress: Callable[[int], None]
) -> dict[tuple[bool, Question], Result]:
    """The result of every distinct question, neighbours (True) apart from facts (False)."""
    asked = dict.fromkeys(
        (measure == "locality", question)
        for batch in batches
        for measure, questions in batch.questions.items()
        for question in questions
    )
    results: dict[tuple[bool, Question], Result] = {}
    for neighbours in (False, True):
        questions = [question for kind, question in asked if kind is neighbours]
        for start in range(0, len(questions), _CHUNK):
            chunk = questions[start : start + _CHUNK]
            found = (
                _ask_neighbours(loaded, chunk) if neighbours else ask_pairs(loaded, [(p, t or "") for p, t in chunk])
            )
            results.update({(neighbours, q): result for q, result in zip(chunk, found, strict=True)})
            progress(len(chunk))
    return results


def _ask_neighbours(loaded: LoadedModel, chunk: Sequence[Question]) -> list[Result]:
    return ask_unchanged(loaded, [prompt for prompt, _ in chunk], base_answers(loaded, chunk))


def _score(batches: Sequence[_Batch], results: Mapping[tuple[bool, Question], Result], step: int | None) -> BatchScores:
    scores = {}
    for measure in MEASURES:
        questions = dict.fromkeys(q for batch in batches for q in batch.questions[measure])
        scores[measure] = summarise([results[measure == "locality", question] for question in questions])
    return BatchScores(step, sum(b.taught for b in batches), sum(b.live for b in batches), scores)


def _perplexities(loaded: LoadedModel, text: str | None) -> tuple[float | None, float | None]:
    if text is None:
        path = atlas.heldout_text_path()
        if not path.is_file():
            return None, None
        text = path.read_text(encoding="utf-8")
    windows = text_windows(loaded, text)
    found = perplexity_of(loaded, windows)
    with loaded.at_base():
        return found, perplexity_of(loaded, windows)


def _plain(batch: BatchScores) -> dict[str, Any]:
    def share(value: float) -> float | None:
        return None if value != value else value

    return {
        "step": batch.step,
        "taught": batch.taught,
        "live": batch.live,
        **{
            name: {
                "questions": score.count,
                "generated": share(score.generated),
                "teacher_forced": share(score.teacher_forced),
                "natural_end": share(score.natural),
            }
            for name, score in batch.scores.items()
        },
    }
