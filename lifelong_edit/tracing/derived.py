"""Preserved prompts made from the facts themselves, for a store whose owner gave none: their prompts, other subjects.

What an edit spoils first are neighbours: the same question about somebody else. Where nobody named prompts whose
answers must stay, those questions are the ones to hold, with whatever the base model says to them. They are derived
afresh for each solve and never stored.
"""

from __future__ import annotations

from collections.abc import Sequence

from lifelong_edit.facts import Fact, Probe, mentions, put_in
from lifelong_edit.models import BASE, LoadedModel
from lifelong_edit.tasks import form_of
from lifelong_edit.tracing.preservation import answer_of, base_answers, in_forms
from lifelong_edit.tracing.rows import Row, draw

SAMPLE = 512
"""Facts whose prompts and subjects are put together: a quarter of a million pairs are enough to draw from."""


def derived_prompts(facts: Sequence[Fact], count: int, *parts: object) -> list[Probe]:
    """Up to `count` prompts of the facts with other facts' subjects put in, whatever the order of the facts.

    No subject is put into a prompt of a relation that a fact of its own speaks of: there the answer may have to change.
    A fact without a relation stands for a relation of its own.
    """
    known: dict[str, set[str]] = {}
    for fact in facts:
        known.setdefault(fact.about.casefold(), set()).add(_relation(fact))
    ordered = sorted(facts, key=lambda fact: fact.digest)
    sample = [ordered[i] for i in draw(len(ordered), SAMPLE, "derived from", *parts)]
    patterns = [(_relation(fact), fact, text) for fact in sample for text in (fact.prompt, *fact.rephrases)]
    patterns = [pattern for pattern in patterns if mentions(pattern[2], pattern[1].subject)]
    subjects = list(dict.fromkeys(fact.subject for fact in sample if fact.subject is not None))
    found: dict[str, Probe] = {}
    pairs = len(patterns) * len(subjects)
    for pair in draw(pairs, 2 * count, "derived", *parts):  # twice as many, since some are of no use
        (relation, fact, text), subject = patterns[pair // len(subjects)], subjects[pair % len(subjects)]
        if relation not in known[subject.casefold()]:
            prompt = put_in(text, fact.subject, subject)
            question = asked_of(fact, subject) if text == fact.prompt else None
            found.setdefault(prompt, Probe(prompt, None, subject, fact.relation, question))
    taught = {text for fact in facts for text in (fact.prompt, *fact.rephrases)}
    return [probe for prompt, probe in found.items() if prompt not in taught][:count]


def derived_rows(
    loaded: LoadedModel,
    facts: Sequence[Fact],
    count: int,
    *parts: object,
    tokens: int,
    weight: float,
    micro_batch: int,
) -> list[Row]:
    """Up to `count` preserved rows of derived prompts with the base model's answers, of `tokens` tokens at most.

    Of a model with several forms fewer prompts, each in all of them.
    """
    probes = derived_prompts(facts, -(-count // len(loaded.forms.names)), *parts)
    return answered_rows(loaded, probes, tokens=tokens, weight=weight, micro_batch=micro_batch)


def answered_rows(
    loaded: LoadedModel, probes: Sequence[Probe], *, tokens: int, weight: float, micro_batch: int
) -> list[Row]:
    """Preserved rows of prompts in each form of the model, with the base model's answers of `tokens` tokens at most."""
    if not probes:
        return []
    probes, questions = in_forms(loaded, probes)
    with loaded.at(BASE):
        encoded = answer_of(loaded, probes, tokens, questions)
        answers = base_answers(loaded, encoded, micro_batch)
    told = zip(encoded, answers, map(form_of, questions), strict=True)
    return [Row(e, "preserved", weight, None, answer, form) for e, answer, form in told]


def asked_of(fact: Fact, subject: str) -> str | None:
    """A fact's own question about another subject; None where it has none, or does not mention its own."""
    question = fact.question or ""
    return put_in(question, fact.subject, subject) if mentions(question, fact.subject) else None


def _relation(fact: Fact) -> str:
    return fact.relation.casefold() if fact.relation else f"of {fact.digest}"
