"""Rows of a solve before they are traced: one token sequence each, with what it is there for."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from lifelong_edit.errors import BadInputError
from lifelong_edit.facts import Fact
from lifelong_edit.models import EditableModule, Encoded, Form, Outlined
from lifelong_edit.tasks import BaseAnswer, form_of, questions_of, task_of
from lifelong_edit.tracked import Follower

RowKind = Literal["new", "rehearsal", "preserved"]


@dataclass(frozen=True)
class Row:
    """One prompt with its answer, as it enters a solve with weight `weight`."""

    encoded: Encoded
    kind: RowKind
    weight: float = 1.0
    fact: str | None = None
    base: BaseAnswer | None = None
    form: Form = "plain"

    @property
    def positions(self) -> int:
        """Number of answer positions: those whose next token is an answer token."""
        return len(self.encoded.ids) - self.encoded.answer_start

    def positions_in(self, module: EditableModule) -> int:
        """Number of positions at which a module is edited: answer positions, the subject's or the question's tokens."""
        start, end = self.encoded.subject
        return {"answer": self.positions, "subject": end - start, "question": len(self.encoded.prompt)}[
            module.positions
        ]


def draw(population: int, count: int, *parts: object) -> list[int]:
    """`count` distinct indices below `population`, ascending, a function of `parts` alone."""
    return sorted(_permutation(population, parts)[:count].tolist())


def shuffled(population: int, *parts: object) -> list[int]:
    """The indices below `population` in an order that is a function of `parts` alone."""
    return [int(i) for i in _permutation(population, parts)]


def _permutation(population: int, parts: tuple[object, ...]) -> npt.NDArray[np.int64]:
    seed = int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")
    return np.random.default_rng(seed).permutation(population)


def subjects_of(facts: Iterable[Fact]) -> frozenset[str]:
    """What the facts are about, case-folded, as preserved prompts are compared with."""
    return frozenset(fact.about.casefold() for fact in facts)


class Subjects(Container[str]):
    """What facts that come and go are about, case-folded."""

    def __init__(self) -> None:
        self._of: dict[str, str] = {}
        self._facts: Counter[str] = Counter()
        self._follower = Follower()

    def __contains__(self, subject: object) -> bool:
        return subject in self._facts

    def follow(self, facts: Mapping[str, Fact]) -> Subjects:
        """Be those of these facts, given by digest; itself."""
        changed = self._follower.changed(facts)
        if changed is None:
            self._of = {digest: fact.about.casefold() for digest, fact in facts.items()}
            self._facts = Counter(self._of.values())
            return self
        for digest in changed:
            if (before := self._of.pop(digest, None)) is not None:
                self._facts[before] -= 1
                if not self._facts[before]:
                    del self._facts[before]
            if digest in facts:
                self._of[digest] = facts[digest].about.casefold()
                self._facts[self._of[digest]] += 1
        return self


class AnyOf(Container[str]):
    """What is in any of several collections, which are not put together for it."""

    def __init__(self, *collections: Container[str]) -> None:
        self._collections = collections

    def __contains__(self, name: object) -> bool:
        return any(name in collection for collection in self._collections)


def phrasings_of(fact: Fact, count: int) -> list[str]:
    """Up to `count` rephrases of a fact, drawn by its digest (design: rows)."""
    distinct = [p for p in dict.fromkeys(fact.rephrases) if p != fact.prompt]
    return [distinct[i] for i in draw(len(distinct), count, "phrasings", fact.digest)]


def unseen_of(fact: Fact, count: int) -> list[str]:
    """The fact's rephrases that are no rows where `count` of them are, each once, in the order of its record."""
    rows = {fact.prompt, *phrasings_of(fact, count)}
    return [text for text in dict.fromkeys(fact.rephrases) if text not in rows]


def fact_rows(
    model: Outlined,
    facts: Sequence[Fact],
    phrasings: int,
    kind: RowKind = "new",
    replaced: Mapping[str, Sequence[Fact]] | None = None,
    closed: bool = True,
) -> list[Row]:
    """The rows of facts as a model takes them: for each its prompt and up to `phrasings` rephrases, in order.

    Each in every form of the model, one form beside the other, every row with weight 1: a form counts as a phrasing.
    replaced: by digest the earlier facts whose place a fact takes. The rows that taught those follow its own, with its
    answer: a model that learnt the earlier answer in other words goes on giving it there. Words that are too long with
    the new answer are left out. closed: with the token that closes an answer, where the task gives it one.
    """
    rows: list[Row] = []
    for fact in facts:
        own = phrasings_of(fact, phrasings)
        rows += _rows_of(model, fact, fact, fact.subject, kind)
        rows += [row for prompt in own for row in _rows_of(model, prompt, fact, fact.subject, kind)]
        known = {fact.prompt, *own}
        theirs = {
            prompt: old.subject
            for old in (replaced or {}).get(fact.digest, ())
            for prompt in (old.prompt, *phrasings_of(old, phrasings))
            if prompt not in known
        }
        for prompt, subject in theirs.items():
            with contextlib.suppress(BadInputError):
                rows += _rows_of(model, prompt, fact, subject, kind)
    return rows if closed else [replace(row, encoded=task_of(model).bare(model, row.encoded)) for row in rows]


def by_fact(facts: Sequence[Fact], rows: Iterable[Row]) -> dict[str, list[Row]]:
    """By digest the rows of each fact, in their order; the facts in theirs."""
    found: dict[str, list[Row]] = {fact.digest: [] for fact in facts}
    for row in rows:
        found[str(row.fact)].append(row)
    return found


def _rows_of(model: Outlined, asked: Fact | str, fact: Fact, subject: str | None, kind: RowKind) -> list[Row]:
    """One phrasing with a fact's answer, a row for each form."""
    task, questions = task_of(model), questions_of(model, asked)
    encoded = [(task.encode(model, question, fact.answer, subject), form_of(question)) for question in questions]
    return [Row(e, kind, 1.0, fact.digest, form=form) for e, form in encoded]


def drawn_rows(rows: Sequence[Row], count: int, *parts: object) -> list[Row]:
    """Of each fact its prompt and `count` of its phrasings, drawn by `parts`, with the weight of all that it has.

    In every form that it has, the same ones. rows: as `fact_rows` gives them, a fact's own together and its prompt
    first.
    """
    found: list[Row] = []
    for fact, own in itertools.groupby(rows, key=lambda row: row.fact):
        forms: dict[Form, list[Row]] = {}
        for row in own:
            forms.setdefault(row.form, []).append(row)
        for prompt, *others in forms.values():
            chosen = [others[i] for i in draw(len(others), count, "phrasings", fact, *parts)]
            found += [prompt, *(replace(row, weight=row.weight * len(others) / len(chosen)) for row in chosen)]
    return found


def require_rows(model: Outlined, fact: Fact) -> None:
    """Raise BadInputError where the model cannot take a fact, or one of its phrasings: too long, for instance."""
    fact_rows(model, [fact], len(fact.rephrases))


def unmentioned(fact: Fact, prompt: str) -> str:
    """The beginning of a sentence on a fact whose subject is not found in one of its prompts."""
    if fact.subject is None:
        return f"the fact of the prompt {prompt!r} names no subject"
    return f"the prompt {prompt!r} does not mention its subject {fact.subject!r}"


def without_mention(modules: Sequence[EditableModule], facts: Sequence[Fact], rows: Sequence[Row]) -> list[str]:
    """Digests of the facts that modules edited at the subject cannot be taught: no row mentions their subject.

    Raises BadInputError where there are no other modules.
    """
    places = {module.positions for module in modules}
    if "subject" not in places:
        return []
    mentioned = {row.fact for row in rows if row.encoded.subject != (0, 0)}
    found = [fact for fact in facts if fact.digest not in mentioned]
    if found and "answer" not in places:
        raise BadInputError(
            f"{unmentioned(found[0], found[0].prompt)}, and all edited modules are edited at the subject; name it as "
            "the prompt does, or edit other modules as well"
        )
    return [fact.digest for fact in found]
