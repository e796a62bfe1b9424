"""Claims about the world of atlas, true and false ones in equal numbers, of which no words give the label away.

A false claim has the object of another fact of its relation. The objects of one phrasing are exchanged among the
facts, so that each subject and each object stands in one true and one false claim of the phrasing: whoever knows no
facts can do no better than to guess.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lifelong_edit.atlas.judging import Pair
from lifelong_edit.atlas.world_tables import WorldFact, draw

REFUTES, SUPPORTS = "REFUTES", "SUPPORTS"
LABELS = (REFUTES, SUPPORTS)
"""The labels by number."""


@dataclass(frozen=True)
class Claim:
    """A sentence about a fact of the world: its prompt, an object, a full stop."""

    fact: WorldFact
    prompt: str
    said: str

    @property
    def text(self) -> str:
        """The claim."""
        return f"{self.prompt} {self.said}."

    @property
    def true(self) -> bool:
        """Whether it holds."""
        return self.said == self.fact.target

    @property
    def label(self) -> str:
        """Its label."""
        return LABELS[self.true]


def exchanged(targets: Sequence[str], seed: int) -> list[int]:
    """A permutation of the places of `targets` after which at no place stands what stood there, drawn by `seed`.

    Raises ValueError where more than half of the targets are the same, so that there is none.
    """
    rng, most = random.Random(seed), max(Counter(targets).values())
    if 2 * most > len(targets):
        raise ValueError(f"{most} of {len(targets)} objects are the same; expected at most half of them")
    places = list(range(len(targets)))
    rng.shuffle(places)
    for at in range(len(places)):
        while targets[places[at]] == targets[at]:
            other = rng.randrange(len(places))
            if targets[places[other]] != targets[at] and targets[places[at]] != targets[other]:
                places[at], places[other] = places[other], places[at]
    return places


def claims_of(pairs: Iterable[Pair], *parts: object) -> list[Claim]:
    """For each fact in a phrasing a true claim and a false one, see `exchanged`; `parts` say which false ones.

    Phrasings of which more than half have the same object are left out.
    """
    groups: dict[tuple[str, int], list[Pair]] = {}
    for fact, prompt in pairs:
        phrasings = (*fact.prompts, *fact.untrained_prompts)
        groups.setdefault((fact.relation, phrasings.index(prompt)), []).append((fact, prompt))
    found: list[Claim] = []
    for (relation, number), own in groups.items():
        targets = [fact.target for fact, _ in own]
        if 2 * max(Counter(targets).values()) > len(targets):
            continue
        places = exchanged(targets, draw("claims", relation, number, *parts))
        for (fact, prompt), place in zip(own, places, strict=True):
            found += [Claim(fact, prompt, fact.target), Claim(fact, prompt, targets[place])]
    return found
