"""Live facts before a question: in which words, with what room for the answer, and what all such rules have in common.

What is remembered is the facts themselves. So nothing is learned, nothing is solved, and nothing is kept.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch import Tensor

from lifelong_edit.bench import Bench, Say, State, silent
from lifelong_edit.editors.contract import Change, Keyless, Lesson, require_batch, require_cold, require_live
from lifelong_edit.editors.retrieval.settings import BREAK, FACTS, QUESTION
from lifelong_edit.errors import BadInputError
from lifelong_edit.facts import Fact
from lifelong_edit.models import BASE, Question, Turn
from lifelong_edit.models.forms import SameQuestion
from lifelong_edit.tasks import questions_of, sentence_of
from lifelong_edit.tracing.rows import fact_rows

ROOM, SHARE = 64, 4
"""Tokens for the answer, and that part of a context at the most, unless the settings say otherwise."""
MANY = 4096
"""Questions that a state knows again: who measures asks each several times."""


class Worded(Protocol):
    """Settings that say how facts stand before a question, and how much of the context stays free."""

    @property
    def wording(self) -> str:
        """Before a prompt."""

    @property
    def chat_wording(self) -> str:
        """Before the words of a turn."""

    @property
    def room(self) -> int | None:
        """Tokens that stay free for the answer; None: by the context."""


class Before:
    """How facts are put before questions on a bench, by its settings."""

    def __init__(self, bench: Bench, settings: Worded) -> None:
        self.bench, self._settings = bench, settings
        self.room = min(ROOM, bench.loaded.context // SHARE) if settings.room is None else settings.room

    def behind(self, question: SameQuestion, facts: Sequence[Fact]) -> SameQuestion:
        """A question behind the sentences of facts, the first of them next to it, in the wording of its form."""
        said = " ".join(sentence_of(fact) for fact in reversed(facts))
        if isinstance(question, Turn):
            return replace(question, text=worded(self._settings.chat_wording, said, question.text))
        return worded(self._settings.wording, said, question)

    def encoded(self, question: Question) -> Sequence[int] | None:
        """The tokens of a question as it stands; None where they leave no room for an answer."""
        with self.bench.loaded.at(BASE):
            try:
                ids = self.bench.task.encode_question(self.bench.loaded, question)
            except BadInputError:
                return None
        return ids if len(ids) + self.room <= self.bench.loaded.context else None

    def require(self, fact: Fact) -> None:
        """Raise BadInputError for a fact that has no room before its own question, or too long an answer."""
        loaded, task = self.bench.loaded, self.bench.task
        for question in questions_of(loaded, fact):
            needed = max(self.room, len(task.encode(loaded, question, fact.answer).answer))
            if needed > self.room or self.encoded(self.behind(question, [fact])) is None:
                raise BadInputError(
                    f"the fact about {fact.about!r} before its own question leaves no room for an answer of {needed} "
                    f"tokens, expected {self.room} to be enough and free in a context of {loaded.context}; make it "
                    "shorter, or make the store with another room"
                )


def worded(wording: str, facts: str, question: str) -> str:
    """A wording with facts and question in their places, whatever braces they hold."""
    before, _, between = wording.replace(BREAK, "\n").removesuffix(QUESTION).partition(FACTS)
    return before + facts + between + question


@dataclass(frozen=True)
class Remembering(ABC):
    """An overlay that puts facts before questions (`models.overlay.Putting`), whatever else it does."""

    facts: Sequence[Fact]
    shifts: Mapping[str, Tensor] = field(default_factory=dict, kw_only=True)
    _put: dict[Any, Any] = field(default_factory=dict, repr=False, kw_only=True)

    def put(self, question: SameQuestion) -> SameQuestion:
        """The question behind the facts that it asks for; itself, as it is, where it asks for none."""
        if question not in self._put:
            if len(self._put) >= MANY:
                self._put.clear()
            self._put[question] = self.behind(question)
        found: SameQuestion = self._put[question]
        return found

    @abstractmethod
    def behind(self, question: SameQuestion) -> SameQuestion:
        """The question as it is to be read."""


class LiveFacts(Keyless):
    """Facts in, nothing out: the store remembers them."""

    def __init__(self, bench: Bench, settings: Worded) -> None:
        self.bench, self.before = bench, Before(bench, settings)

    @property
    def phrasings(self) -> int:
        """How many of a fact's rephrases are made use of."""
        return 0

    def told(self) -> dict[str, object]:
        """What a report says beside the number of facts."""
        return {}

    def require(self, fact: Fact) -> None:
        """Raise BadInputError for a fact that has no room before its own question."""
        self.before.require(fact)

    def learn(self, state: State, lesson: Lesson) -> Change:
        """Nothing but the facts themselves; see `Editor.learn`. Raises BadInputError as `require`."""
        require_batch(lesson.facts)
        fact_rows(self.bench.loaded, lesson.facts, self.phrasings)  # refuses what is too long by itself
        for fact in lesson.facts:
            self.require(fact)
        return Change({}, {"facts": len(lesson.facts), **self.told()})

    def relearn(
        self,
        facts: Sequence[Fact],
        *,
        start: Mapping[str, Tensor] | None = None,
        identity: str = "",
        say: Say = silent,
    ) -> Change:
        """Nothing but the facts themselves; see `Editor.relearn`."""
        require_live(facts)
        editor = self.bench.settings.editor
        require_cold(start, f"editor {editor} has nothing to solve, since it shifts no weights")
        return Change({}, {"facts": len(facts)})
