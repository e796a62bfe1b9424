"""Retrieval in front of any rule: a question that asks for a live fact is read behind it, by the model as edited.

The rule inside teaches as it always does, of a model that nothing is put before, so that what it edits does not lean on
the memory in front of it. Whoever asks or judges a state asks the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lifelong_edit.bench import Bench, State
from lifelong_edit.editors.contract import Arrays, Change, Editor, Given, Lesson
from lifelong_edit.editors.retrieval import RULE as RETRIEVAL
from lifelong_edit.editors.retrieval import rule as retrieval
from lifelong_edit.editors.retrieval.encoding import block_at
from lifelong_edit.editors.retrieval.settings import RetrievalSettings
from lifelong_edit.editors.wrapping import WRAPPERS
from lifelong_edit.editors.wrapping.around import Around
from lifelong_edit.facts import Fact
from lifelong_edit.models import BASE, EditableModule, LoadedModel
from lifelong_edit.settings import StoreSettings
from lifelong_edit.tracing.rows import Row


class InFront(Around):
    """The wrapper at work. memory: the rule that finds facts and puts them before questions."""

    def __init__(self, bench: Bench, inner: Editor, memory: retrieval.RetrievalEditor) -> None:
        super().__init__(bench, inner)
        self.memory = memory

    def require(self, fact: Fact) -> None:
        """Raise BadInputError where the rule inside cannot be taught the fact, or it could not be remembered."""
        super().require(fact)
        self.memory.require(fact)

    def kept_rows(self, facts: Sequence[Fact]) -> Sequence[Row]:
        """The rows whose keys the rule inside keeps: those of its own lessons, before which nothing was put."""
        with self.bench.loaded.at(BASE):
            return super().kept_rows(facts)

    def learn(self, state: State, lesson: Lesson) -> Change:
        """What the rule inside would change; see `Editor.learn`. Raises BadInputError as `require`."""
        for fact in lesson.facts:
            self.memory.require(fact)
        change = super().learn(state, lesson)
        return replace(change, report=change.report | {"retrieval": self.memory.told()})

    def overlay(self, state: State) -> retrieval.Remembered:
        """The live facts before the questions that ask for them, asked of the model that the rule inside makes."""
        return self.memory.overlay(state, self.inner.overlay(state))


def of_memory(settings: StoreSettings, phrasings: int = 0) -> RetrievalSettings:
    """The settings of the rule in front, from those of the pair. phrasings: as `RetrievalSettings` has them."""
    shared = {*StoreSettings.__struct_fields__, *WRAPPERS["retrieval"].adds} - {"editor"}
    return RetrievalSettings(**{name: getattr(settings, name) for name in shared}, phrasings=phrasings)


def read_at(loaded: LoadedModel) -> str:
    """The block behind which texts are compared, wherever the rule inside edits: where `retrieval` alone is at home."""
    assert isinstance(RETRIEVAL.places, float)
    return block_at(loaded, RETRIEVAL.places)


def make(bench: Bench, inner: Editor) -> InFront:
    """The wrapper around a rule. A question is compared with those rephrases that the rule inside is taught."""
    settings = of_memory(bench.settings, inner.phrasings)
    memory = retrieval.RetrievalEditor(bench.under(settings), read_at(bench.loaded))
    return InFront(bench, inner, memory)


def require(settings: StoreSettings, given: Given, modules: Sequence[EditableModule] = ()) -> None:
    """Raise UsageError for an encoder that is no folder."""
    retrieval.require(of_memory(settings), given, modules)


def fix(loaded: LoadedModel, settings: StoreSettings, given: Given) -> Arrays:
    """The scale of vectors and the threshold, as `retrieval` has them."""
    return retrieval.fix(loaded, of_memory(settings), given, read_at(loaded))
