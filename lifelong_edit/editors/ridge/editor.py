"""The rules of this family at work: how they ask differs, rows, solve and what is held still are the same."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from lifelong_edit.bench import Bench, Say, State, silent
from lifelong_edit.editors.contract import Arrays, Bookmark, Change, Lesson
from lifelong_edit.editors.ridge.batch import Work, learn_as_published, learn_jointly
from lifelong_edit.editors.ridge.gradient import GradientTargets
from lifelong_edit.editors.ridge.held import Preservation
from lifelong_edit.editors.ridge.passes import fact_keys
from lifelong_edit.editors.ridge.settings import RidgeSettings
from lifelong_edit.editors.ridge.targets import Targets
from lifelong_edit.editors.ridge.together import Together
from lifelong_edit.facts import Fact
from lifelong_edit.models import Shifts
from lifelong_edit.stores import FactKeys
from lifelong_edit.tracing.rows import Row, fact_rows, without_mention
from lifelong_edit.tracing.trace import trace


class RidgeEditor:
    """Targets in, one ridge regression per matrix, a weight shift out.

    targets: how the rule asks in a batch. When all facts are solved for together, it asks little and many times,
    without a network: with the gradient in the output metric, and a step of its own (`reconsolidation_eta`).
    """

    def __init__(self, bench: Bench, targets: Targets) -> None:
        self.bench, self.targets, self.settings = bench, targets, self.options_of(bench)
        self.preservation = Preservation(bench)
        self.bookmark: Bookmark | None = None

    @staticmethod
    def options_of(bench: Bench) -> RidgeSettings:
        """The settings of the bench, which are of this family."""
        assert isinstance(bench.settings, RidgeSettings)  # the registry pairs rules with their settings
        return bench.settings

    @property
    def for_all(self) -> GradientTargets:
        """How the rule asks when all facts are solved for together."""
        s = self.settings
        return GradientTargets(s.reconsolidation_eta, s.kappa, s.trust)

    @property
    def phrasings(self) -> int:
        """How many of a fact's rephrases are rows beside its prompt."""
        return self.settings.phrasings

    def require(self, fact: Fact) -> None:
        """Raise BadInputError where all modules are edited at the subject and no row mentions it."""
        modules = self.bench.loaded.modules
        if all(module.positions == "subject" for module in modules):
            without_mention(modules, [fact], self.kept_rows([fact]))

    def kept_rows(self, facts: Sequence[Fact]) -> Sequence[Row]:
        """The rows of facts: prompts and phrasings."""
        return fact_rows(self.bench.loaded, facts, self.settings.phrasings, closed=self.settings.closes)

    def ridge(self, module: str) -> float:
        """λ of a module's solve: the setting's exp(ℓ)·trace(C₀)/d_in, the rule's own, or 1."""
        if self.settings.log_ridge is not None:
            grams = self.bench.text_gram
            return math.exp(self.settings.log_ridge) * grams.trace(module) / grams.width(module)
        own = self.targets.ridge(module)
        return 1.0 if own is None else own

    def ridges(self) -> dict[str, float]:
        """λ by module."""
        return {name: self.ridge(name) for name in self.bench.names}

    def work(self, state: State, lesson: Lesson) -> Work:
        """A batch on its way."""
        return Work(self.bench, self.settings, self.targets, state, lesson, self.ridges())

    def learn(self, state: State, lesson: Lesson) -> Change:
        """What teaching a batch would change, see `Editor.learn`."""
        work = self.work(state, lesson)
        return learn_as_published(work) if self.settings.ask == "published" else learn_jointly(work, self.preservation)

    def keys_at(
        self,
        shifts: Mapping[str, Tensor],
        facts: Sequence[Fact],
        conflict: Arrays,
        replaced: Mapping[str, Sequence[Fact]] | None = None,
    ) -> dict[str, FactKeys]:
        """Keys of facts at ΔW, see `KeepsKeys`."""
        s = self.settings
        rows = fact_rows(self.bench.loaded, facts, s.phrasings, replaced=replaced, closed=s.closes)
        with self.bench.loaded.at(shifts):
            traced = trace(self.bench.loaded, rows, self.settings.micro_batch, gradients=False)
        return fact_keys(self.bench, traced, rows, conflict)

    def relearn(
        self,
        facts: Sequence[Fact],
        *,
        start: Mapping[str, Tensor] | None = None,
        identity: str = "",
        say: Say = silent,
    ) -> Change:
        """What solving again for all facts would change, see `Editor.relearn`."""
        together = Together(self.bench, self.settings, self.for_all, self.preservation, self.ridges(), self.bookmark)
        return together.solve(facts, start, identity, say)

    def overlay(self, state: State) -> Shifts:
        """W₀ + ΔW."""
        return Shifts(state.shifts)


def log_ridge_of(bench: Bench, ridge: float) -> float:
    """ℓ at which exp(ℓ)·trace(C₀)/d_in is a ridge, in the mean over the modules."""
    grams = bench.text_gram
    logs = [math.log(grams.trace(name) / grams.width(name)) for name in bench.names]
    return math.log(ridge) - sum(logs) / len(logs)
