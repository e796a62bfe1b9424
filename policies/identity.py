"""When two records ask for the same fact, by what they say alone."""

from __future__ import annotations

import unicodedata

from lifelong_edit.facts import Fact

Identity = tuple[str, ...]


def normalise(text: str) -> str:
    """Text without the differences that nobody means: Unicode compatibility forms, case, white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def identities(fact: Fact) -> tuple[Identity, ...]:
    """The names under which a fact is known: its prompt, and its subject and relation where it has one.

    Two facts that share one of them ask for the same thing; with different targets they contradict each other.
    """
    prompt = ("prompt", normalise(fact.prompt))
    if fact.relation is None or not fact.relation.strip():
        return (prompt,)
    return (prompt, ("relation", normalise(fact.subject), normalise(fact.relation)))
