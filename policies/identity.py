"""When two records ask for the same fact, by what they say alone."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from lifelong_edit.facts import Fact, Probe

Identity = tuple[str, ...]


def normalise(text: str) -> str:
    """Text without the differences that nobody means: Unicode compatibility forms, case, white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def identities(fact: Fact) -> tuple[Identity, ...]:
    """The names under which a fact is known: its prompt, each of its phrasings for its subject, and its relation.

    Its own question, where it has one, is a phrasing. Those of facts without a subject have one name each, whatever
    they are about; a relation is no name without a subject. Two facts that share a name ask for the same thing; with
    different targets they contradict each other.
    """
    subject, asked = normalise(fact.subject or ""), () if fact.question is None else (fact.question,)
    phrasings = dict.fromkeys(normalise(text) for text in (fact.prompt, *fact.rephrases, *asked))
    names: list[Identity] = [("prompt", normalise(fact.prompt)), *(("phrasing", subject, text) for text in phrasings)]
    if subject and fact.relation is not None and fact.relation.strip():
        names.append(("relation", subject, normalise(fact.relation)))
    return tuple(names)


def probe_identities(probe: Probe, fact: Fact) -> tuple[Identity, ...]:
    """The names under which a neighbour of a fact could have been edited; without a relation it has its fact's."""
    names: list[Identity] = [("prompt", normalise(probe.prompt))]
    relation = probe.relation or fact.relation
    if probe.subject and relation:
        names.append(("relation", normalise(probe.subject), normalise(relation)))
    return tuple(names)


def edited_identities(facts: Iterable[Fact]) -> set[Identity]:
    """The names of all that facts edit: a neighbour that has one of them is no neighbour any more."""
    names: set[Identity] = set()
    for fact in facts:
        names.update(identities(fact))
        names.update(("prompt", normalise(text)) for text in fact.rephrases)
    return names
