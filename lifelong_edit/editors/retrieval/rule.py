"""Retrieval at work: what is remembered is the live facts, and shows in the questions that ask for them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

from lifelong_edit.bench import Bench, State
from lifelong_edit.editors.contract import Arrays, Given
from lifelong_edit.editors.retrieval.encoding import encoder_of, require_folder
from lifelong_edit.editors.retrieval.gate import ENCODER, Gate, Scale, calibrated
from lifelong_edit.editors.retrieval.putting import LiveFacts, Remembering
from lifelong_edit.editors.retrieval.settings import RetrievalSettings
from lifelong_edit.errors import BadInputError
from lifelong_edit.facts import Fact, general_prompts, mentions
from lifelong_edit.models import BASE, EditableModule, LoadedModel, Overlay
from lifelong_edit.models.forms import SameQuestion
from lifelong_edit.settings import StoreSettings
from lifelong_edit.tasks import questions_of, text_of
from lifelong_edit.tracing.rows import unmentioned

FEW = 50
"""With fewer preserved prompts than this the general ones are compared too."""


@dataclass(frozen=True)
class Remembered(Remembering):
    """The overlay of the rule: what is put before a question, and the model that reads it.

    inner: what makes that model, whose shifts are given beside it: the base, unless another rule edits it.
    """

    recall: RetrievalEditor
    inner: Overlay = field(default=BASE, kw_only=True)

    def attach(self, model: Any) -> AbstractContextManager[None]:
        """The hooks of the model that reads what is put."""
        return self.inner.attach(model)

    def behind(self, question: SameQuestion) -> SameQuestion:
        """The question behind as many of the facts that it asks for as there is room for."""
        recall = self.recall
        facts = [fact for fact, _ in recall.gate.found(text_of(question), self.facts)[: recall.settings.most]]
        while facts:
            behind = recall.before.behind(question, facts)
            if recall.before.encoded(behind) is not None:
                return behind
            facts.pop()
        return question


class RetrievalEditor(LiveFacts):
    """Facts in, nothing out: the store remembers them. block: where states are read, as of `OwnStates`."""

    def __init__(self, bench: Bench, block: str | None = None) -> None:
        assert isinstance(bench.settings, RetrievalSettings)  # the registry pairs rules with their settings
        super().__init__(bench, bench.settings)
        self.settings = bench.settings
        fixed, s = bench.fixed.rule, bench.settings
        encoder = encoder_of(bench.loaded, s.encoder, s.micro_batch, fixed[ENCODER].tobytes().decode(), block)
        scale = Scale.of(fixed)
        if s.threshold is not None:
            scale = replace(scale, threshold=s.threshold)
        self.gate = Gate(encoder, scale, s.mentioned, s.phrasings)

    @property
    def phrasings(self) -> int:
        """How many of a fact's rephrases a question is compared with beside its prompt."""
        return self.settings.phrasings

    def told(self) -> dict[str, object]:
        """The threshold."""
        return {"threshold": self.gate.scale.threshold}

    def require(self, fact: Fact) -> None:
        """Raise BadInputError for a fact that no question would find, or that has no room before its own."""
        for question in questions_of(self.bench.loaded, fact):
            text = text_of(question)
            if self.settings.mentioned and not mentions(text, fact.subject):
                raise BadInputError(
                    f"{unmentioned(fact, text)}, by which it is to be found; "
                    "name it as the prompt does, or make the store with --set mentioned=false"
                )
        super().require(fact)

    def overlay(self, state: State, inner: Overlay = BASE) -> Remembered:
        """The live facts, put before the questions that ask for them; inner: what makes the model that reads them."""
        return Remembered(list(state.live.values()), self, shifts=inner.shifts, inner=inner)


def make(bench: Bench) -> RetrievalEditor:
    """The rule with what it fixed at `init`."""
    return RetrievalEditor(bench)


def require(settings: StoreSettings, given: Given, modules: Sequence[EditableModule] = ()) -> None:
    """Raise UsageError for an encoder that is no folder."""
    assert isinstance(settings, RetrievalSettings)
    if settings.encoder is not None:
        require_folder(settings.encoder)


def fix(loaded: LoadedModel, settings: StoreSettings, given: Given, block: str | None = None) -> Arrays:
    """The scale of vectors and the threshold, by preserved prompts; by general ones where there are few of them.

    block: where states are read, as of `OwnStates`.
    """
    assert isinstance(settings, RetrievalSettings)
    s, encoder = settings, encoder_of(loaded, settings.encoder, settings.micro_batch, block=block)
    probes = list(given.preserve)
    if len(probes) < FEW:
        probes += general_prompts()
    return calibrated(encoder, probes, s.mentioned, s.false_alarms, s.seed).arrays(encoder)
