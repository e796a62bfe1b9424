"""What is asked about each batch of a timeline: its live facts, their phrasings, what follows, and their neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lifelong_edit.errors import BadInputError
from lifelong_edit.eval.metrics.probabilities import Comparison
from lifelong_edit.facts import MULTI_HOP, Fact, Probe
from lifelong_edit.models import LoadedModel
from lifelong_edit.models import Question as Put
from lifelong_edit.policies import edited_identities, probe_identities
from lifelong_edit.tasks import leading, question_in, task_of
from lifelong_edit.timeline import Timeline
from lifelong_edit.tracing.rows import unseen_of

MEASURES = ("efficacy", "generality", "unseen", "wrapped", "portability", "multihop", "locality")

CHAT_MEASURES = ("chat", "chat_unseen", "chat_locality")
"""Beside them in a store of both forms: efficacy, unseen and locality in turns of a conversation."""

OF_LABELS = ("locality_true",)
"""Of a classifier beside them: neighbours against the label that they came with, as published (MALMEN, 2311.04661)."""

Question = tuple[Put, str | None]
"""A prompt or a turn, and the answer that is wanted (of a neighbour: the one that it came with, if any)."""


@dataclass
class Batch:
    """The questions of one batch."""

    step: int
    taught: int
    facts: list[Fact]
    """Those of its facts that are still in force and were not taught again since; only those are asked."""
    questions: dict[str, dict[Question, str]] = field(default_factory=dict)
    """By measure (`measures_of`); each with the digest of the fact that it is asked for, the first of several."""
    aliases: dict[Question, tuple[str, ...]] = field(default_factory=dict)
    """Other answers that are as right as that of a question; of those that have any."""
    comparisons: dict[str, dict[str, list[Comparison]]] = field(default_factory=dict)
    """By fact's digest and kind (`probabilities.KINDS`); of facts whose record keeps the true answer."""


@dataclass
class LeftOut:
    """What is not asked, and why."""

    edited: set[str] = field(default_factory=set)
    """Neighbours whose prompt, or whose subject and relation, a fact of the line edits."""
    too_long: set[Question] = field(default_factory=set)


def batches_of(timeline: Timeline, loaded: LoadedModel, step: int) -> tuple[list[Batch], LeftOut]:
    """The batches on a state's line, in order, with their questions.

    A fact that came, went and came again counts for the step that taught it last.
    """
    line = timeline.history().line(step)
    facts = timeline.facts_by_digest([digest for record in line for digest in record.added])
    live = timeline.history().fold(step).live
    last = {digest: record.step for record in line for digest in record.added}
    edited = edited_identities(facts.values())
    batches, left = [], LeftOut()
    for record in line:
        if record.added:
            asked = [facts[digest] for digest in record.added if digest in live and last[digest] == record.step]
            batch = Batch(record.step, len(record.added), asked)
            _collect(batch, loaded, timeline.editor().phrasings, edited, left)
            batches.append(batch)
    return batches, left


def _collect(batch: Batch, loaded: LoadedModel, phrasings: int, edited: set[tuple[str, ...]], left: LeftOut) -> None:
    batch.questions = {measure: {} for measure in measures_of(loaded)}
    for fact in batch.facts:
        kept = []
        for probe in fact.locality:
            if edited.isdisjoint(probe_identities(probe, fact)):
                kept.append(probe)
            else:
                left.edited.add(probe.prompt)
        for probe in fact.portability:
            if probe.target and (others := tuple(a for a in probe.aliases if fits(loaded, leading(loaded, probe), a))):
                batch.aliases[leading(loaded, probe), probe.target] = others
        for measure, questions in _questions(loaded, fact, kept, phrasings).items():
            for question in questions:
                if fits(loaded, *question):
                    batch.questions[measure].setdefault(question, fact.digest)
                else:
                    left.too_long.add(question)
        if fact.target_true is not None and fact.target_true != fact.target:
            kinds = _comparisons(loaded, fact, fact.target_true, kept)
            batch.comparisons[fact.digest] = {
                kind: [c for c in of if fits(loaded, c.prompt, c.wanted) and fits(loaded, c.prompt, c.other)]
                for kind, of in kinds.items()
            }


def measures_of(loaded: LoadedModel) -> tuple[str, ...]:
    """The measures of a model: MEASURES in its leading form, and those that some models have beside them.

    CHAT_MEASURES where turns come beside plain text, OF_LABELS of a classifier.
    """
    chat = CHAT_MEASURES if len(loaded.forms.names) > 1 else ()
    return (*MEASURES, *chat, *(OF_LABELS if loaded.labels else ()))


def _questions(
    loaded: LoadedModel, fact: Fact, neighbours: Sequence[Probe], phrasings: int
) -> Mapping[str, list[Question]]:
    others = [prompt for prompt in dict.fromkeys(fact.rephrases) if prompt != fact.prompt]
    wrapped = fact.counterfact_rephrase
    wanted: dict[str, list[tuple[Fact | Probe | str, str | None]]] = {
        "efficacy": [(fact, fact.answer)],
        "generality": [(prompt, fact.answer) for prompt in others],
        "unseen": [(prompt, fact.answer) for prompt in unseen_of(fact, phrasings)],
        "wrapped": [] if wrapped is None else [(wrapped, fact.answer)],
        "portability": [(p, p.target) for p in fact.portability if p.target and p.kind != MULTI_HOP],
        "multihop": [(p, p.target) for p in fact.portability if p.target and p.kind == MULTI_HOP],
        "locality": [(probe, probe.target) for probe in neighbours],
    }
    if loaded.labels:
        wanted["locality_true"] = [(probe, probe.target) for probe in neighbours if probe.target]
    first, *further = loaded.forms.names
    found = {name: [(question_in(loaded, first, of), answer) for of, answer in part] for name, part in wanted.items()}
    for form in further:
        of_chat = zip(CHAT_MEASURES, ("efficacy", "unseen", "locality"), strict=True)
        found |= {name: [(question_in(loaded, form, of), a) for of, a in wanted[like]] for name, like in of_chat}
    return found


def _comparisons(
    loaded: LoadedModel, fact: Fact, true: str, neighbours: Sequence[Probe]
) -> Mapping[str, list[Comparison]]:
    """New against true answer. A neighbour's true answer is its own, where its record has one, else the fact's."""
    paraphrases = [*fact.rephrases, *([fact.counterfact_rephrase] if fact.counterfact_rephrase else [])]
    others = [leading(loaded, prompt) for prompt in dict.fromkeys(paraphrases) if prompt != fact.prompt]
    near = [(leading(loaded, probe), probe.target or true) for probe in neighbours]
    return {
        "E": [Comparison(leading(loaded, fact), fact.answer, fact.joined(true))],
        "P": [Comparison(question, fact.answer, fact.joined(true)) for question in others],
        "N": [Comparison(question, answer, fact.target) for question, answer in near if answer != fact.target],
    }


def fits(loaded: LoadedModel, prompt: Put, target: str | None) -> bool:
    """Whether the model can take a question; of one without an answer of its own at least the first token."""
    task = task_of(loaded)
    try:
        if target is not None:
            task.encode(loaded, prompt, target)
            return True
        return len(task.encode_question(loaded, prompt)) < loaded.context
    except BadInputError:
        return False
