"""The facts that atlas knows, read from the tables under ``world/`` and cut into trained and withheld prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lifelong_edit.atlas.phrasings import BY_NAME, RELATIONS, Relation, render

WORLD = Path(__file__).parent / "world"
UNKNOWN = "-"


@dataclass(frozen=True)
class WorldFact:
    """One true fact: a subject, what is asked of it, and the one right answer.

    Attributes:
        subject: as it appears in every prompt, without its article.
        relation: a name in ``phrasings.BY_NAME``.
        target: the object, as it follows a prompt after one space.
        article: whether prompts put ``the`` before the subject.
    """

    subject: str
    relation: str
    target: str
    article: bool

    def prompt(self, phrasing: str) -> str:
        """This fact's prompt in one phrasing of its relation."""
        return render(phrasing, self.subject, self.article)

    @property
    def prompts(self) -> tuple[str, ...]:
        """All eight phrasings of the relation that training uses, withheld ones included."""
        return tuple(self.prompt(phrasing) for phrasing in BY_NAME[self.relation].trained)

    @property
    def untrained_prompts(self) -> tuple[str, ...]:
        """The two phrasings that are in no training."""
        return tuple(self.prompt(phrasing) for phrasing in BY_NAME[self.relation].untrained)


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a tab-separated file, each as a mapping from the header's column names."""
    lines = path.read_text(encoding="utf-8").splitlines()
    header = lines[0].split("\t")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        cells = line.split("\t")
        if len(cells) != len(header):
            raise ValueError(f"{path.name}:{number}: {len(cells)} fields, but the header names {len(header)}")
        rows.append(dict(zip(header, cells, strict=True)))
    return rows


def _facts_of(relation: Relation) -> Iterator[WorldFact]:
    for row in read_table(WORLD / f"{relation.table}.tsv"):
        target = row[relation.column]
        if target == UNKNOWN:
            continue
        article = row["name"].startswith("the ")
        yield WorldFact(row["name"].removeprefix("the "), relation.name, target, article)


@cache
def world_facts() -> tuple[WorldFact, ...]:
    """All facts, relation by relation in the order of ``RELATIONS`` and of the tables' rows."""
    return tuple(fact for relation in RELATIONS for fact in _facts_of(relation))


def draw(*parts: object) -> int:
    """A number in [0, 2**64) that is a function of its arguments alone: the same on every machine and in every run."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def subject_order(facts: tuple[WorldFact, ...], *parts: object) -> list[WorldFact]:
    """The facts in a seeded order that depends on their content alone."""
    return sorted(facts, key=lambda fact: draw(*parts, fact.relation, fact.subject))


@cache
def _places() -> dict[tuple[str, str], int]:
    """Where each fact stands in the seeded order of its relation's subjects."""
    by_relation = (tuple(f for f in world_facts() if f.relation == relation.name) for relation in RELATIONS)
    ordered = (subject_order(own, "withheld") for own in by_relation)
    return {(fact.relation, fact.subject): place for own in ordered for place, fact in enumerate(own)}


def withheld_from(fact: WorldFact, phrasing: int) -> bool:
    """Whether no training asks for a fact in the phrasing of that number: a third of the subjects for each.

    The subjects of a relation stand in one seeded order; phrasing i is withheld from those whose place is i modulo 3,
    so that every subject is trained in five or six of eight phrasings.
    """
    return phrasing % 3 == _places()[fact.relation, fact.subject] % 3


@cache
def withheld_pairs() -> frozenset[tuple[str, str, int]]:
    """The (relation, subject, index of phrasing) that no training sees, see `withheld_from`."""
    return frozenset(
        (fact.relation, fact.subject, i)
        for fact in world_facts()
        for i in range(len(fact.prompts))
        if withheld_from(fact, i)
    )


def trained_pairs() -> list[tuple[WorldFact, str]]:
    """Every (fact, prompt) that is in the training, in the order of the facts."""
    held = withheld_pairs()
    return [
        (fact, prompt)
        for fact in world_facts()
        for i, prompt in enumerate(fact.prompts)
        if (fact.relation, fact.subject, i) not in held
    ]


def held_pairs() -> list[tuple[WorldFact, str]]:
    """Every (fact, prompt) in a trained phrasing that was withheld from this fact."""
    held = withheld_pairs()
    return [
        (fact, prompt)
        for fact in world_facts()
        for i, prompt in enumerate(fact.prompts)
        if (fact.relation, fact.subject, i) in held
    ]


def untrained_pairs() -> list[tuple[WorldFact, str]]:
    """Every (fact, prompt) in the two phrasings of its relation that are in no training."""
    return [(fact, prompt) for fact in world_facts() for prompt in fact.untrained_prompts]
