"""Retrieval at work: what is remembered is the live facts, and shows in the questions that ask for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from lifelong_edit.bench import Bench, Say, State, silent
from lifelong_edit.editors.contract import (
    Arrays,
    Change,
    Given,
    Keyless,
    Lesson,
    require_batch,
    require_cold,
    require_live,
)
from lifelong_edit.editors.retrieval.encoding import encoder_of, require_folder
from lifelong_edit.editors.retrieval.gate import ENCODER, Gate, Scale, calibrated
from lifelong_edit.editors.retrieval.settings import BREAK, FACTS, QUESTION, RetrievalSettings
from lifelong_edit.errors import BadInputError
from lifelong_edit.facts import Fact, general_prompts, mentions
from lifelong_edit.models import BASE, EditableModule, LoadedModel, Question, Turn
from lifelong_edit.models.forms import SameQuestion
from lifelong_edit.settings import StoreSettings
from lifelong_edit.tasks import questions_of, sentence_of, text_of
from lifelong_edit.tracing.rows import fact_rows, unmentioned

ROOM, SHARE = 64, 4
"""Tokens for the answer, and that part of a context at the most, unless the settings say otherwise."""
MANY = 4096
"""Questions that a state knows again: who measures asks each several times."""
FEW = 50
"""With fewer preserved prompts than this the general ones are compared too."""


@dataclass(frozen=True)
class Remembered:
    """The overlay of the rule (`models.overlay.Putting`): no weight and no hook, but what is put before a question."""

    facts: Sequence[Fact]
    recall: RetrievalEditor
    shifts: Mapping[str, Tensor] = field(default_factory=dict)
    _put: dict[Any, Any] = field(default_factory=dict, repr=False)

    def attach(self, model: Any) -> AbstractContextManager[None]:
        """Nothing to attach."""
        return nullcontext()

    def put(self, question: SameQuestion) -> SameQuestion:
        """The question behind the facts that it asks for; itself, as it is, where it asks for none."""
        if question not in self._put:
            if len(self._put) >= MANY:
                self._put.clear()
            self._put[question] = self._behind(question)
        found: SameQuestion = self._put[question]
        return found

    def _behind(self, question: SameQuestion) -> SameQuestion:
        facts = [fact for fact, _ in self.recall.gate.found(text_of(question), self.facts)[: self.recall.settings.most]]
        while facts:
            behind = self.recall.behind(question, facts)
            if self.recall.has_room(behind):
                return behind
            facts.pop()
        return question


class RetrievalEditor(Keyless):
    """Facts in, nothing out: the store remembers them."""

    def __init__(self, bench: Bench) -> None:
        assert isinstance(bench.settings, RetrievalSettings)  # the registry pairs rules with their settings
        self.bench, self.settings = bench, bench.settings
        fixed, s = bench.fixed.rule, bench.settings
        encoder = encoder_of(bench.loaded, s.encoder, s.micro_batch, fixed[ENCODER].tobytes().decode())
        scale = Scale.of(fixed)
        if s.threshold is not None:
            scale = replace(scale, threshold=s.threshold)
        self.gate = Gate(encoder, scale, s.mentioned, s.phrasings)
        context = bench.loaded.context
        self._room = min(ROOM, context // SHARE) if s.room is None else s.room

    @property
    def phrasings(self) -> int:
        """How many of a fact's rephrases a question is compared with beside its prompt."""
        return self.settings.phrasings

    def require(self, fact: Fact) -> None:
        """Raise BadInputError for a fact that no question would find, or that has no room before its own."""
        for question in questions_of(self.bench.loaded, fact):
            text = text_of(question)
            if self.settings.mentioned and not mentions(text, fact.subject):
                raise BadInputError(
                    f"{unmentioned(fact, text)}, by which it is to be found; "
                    "name it as the prompt does, or make the store with --set mentioned=false"
                )
            needed = max(self._room, len(self.bench.task.encode(self.bench.loaded, question, fact.answer).answer))
            if needed > self._room or not self.has_room(self.behind(question, [fact])):
                raise BadInputError(
                    f"the fact about {fact.about!r} before its own question leaves no room for an answer of {needed} "
                    f"tokens, expected {self._room} to be enough and free in a context of {self.bench.loaded.context}; "
                    "make it shorter, or make the store with another room"
                )

    def overlay(self, state: State) -> Remembered:
        """The live facts, put before the questions that ask for them."""
        return Remembered(list(state.live.values()), self)

    def learn(self, state: State, lesson: Lesson) -> Change:
        """Nothing but the facts themselves; see `Editor.learn`. Raises BadInputError as `require`."""
        require_batch(lesson.facts)
        fact_rows(self.bench.loaded, lesson.facts, self.settings.phrasings)  # refuses what is too long by itself
        for fact in lesson.facts:
            self.require(fact)
        return Change({}, {"facts": len(lesson.facts), "threshold": self.gate.scale.threshold})

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
        require_cold(start, "editor retrieval has nothing to solve, since it shifts no weights")
        return Change({}, {"facts": len(facts)})

    def behind(self, question: SameQuestion, facts: Sequence[Fact]) -> SameQuestion:
        """A question behind the sentences of facts, the first of them next to it, in the wording of its form."""
        said = " ".join(sentence_of(fact) for fact in reversed(facts))
        if isinstance(question, Turn):
            return replace(question, text=worded(self.settings.chat_wording, said, question.text))
        return worded(self.settings.wording, said, question)

    def has_room(self, question: Question) -> bool:
        """Whether a question leaves room for an answer."""
        with self.bench.loaded.at(BASE):
            try:
                length = len(self.bench.task.encode_question(self.bench.loaded, question))
            except BadInputError:
                return False
        return length + self._room <= self.bench.loaded.context


def worded(wording: str, facts: str, question: str) -> str:
    """A wording with facts and question in their places, whatever braces they hold."""
    before, _, between = wording.replace(BREAK, "\n").removesuffix(QUESTION).partition(FACTS)
    return before + facts + between + question


def make(bench: Bench) -> RetrievalEditor:
    """The rule with what it fixed at `init`."""
    return RetrievalEditor(bench)


def require(settings: StoreSettings, given: Given, modules: Sequence[EditableModule] = ()) -> None:
    """Raise UsageError for an encoder that is no folder."""
    assert isinstance(settings, RetrievalSettings)
    if settings.encoder is not None:
        require_folder(settings.encoder)


def fix(loaded: LoadedModel, settings: StoreSettings, given: Given) -> Arrays:
    """The scale of vectors and the threshold, by preserved prompts; by general ones where there are few of them."""
    assert isinstance(settings, RetrievalSettings)
    s, encoder = settings, encoder_of(loaded, settings.encoder, settings.micro_batch)
    probes = list(given.preserve)
    if len(probes) < FEW:
        probes += general_prompts()
    return calibrated(encoder, probes, s.mentioned, s.false_alarms, s.seed).arrays(encoder)
