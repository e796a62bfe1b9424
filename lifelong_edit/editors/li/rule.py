"""Interpolation at work: another rule proposes, a share of its proposal is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import torch
from torch import Tensor

from lifelong_edit.bench import Bench, Say, State, silent
from lifelong_edit.editors.contract import Added, Change, Lesson, Whole
from lifelong_edit.editors.li.curve import interpolated, robustness_curve
from lifelong_edit.editors.li.settings import LiSettings
from lifelong_edit.editors.registry import rule_of
from lifelong_edit.editors.tuning.editor import TunedEditor, usual
from lifelong_edit.editors.tuning.settings import TuningSettings
from lifelong_edit.facts import Fact
from lifelong_edit.models import Shifts
from lifelong_edit.settings import StoreSettings
from lifelong_edit.stores import WEIGHTS, Dense, materialise
from lifelong_edit.tasks import leading
from lifelong_edit.tracing.derived import derived_rows
from lifelong_edit.tracing.rows import Row, draw, subjects_of, unseen_of

__all__ = ["make", "usual"]


class InterpolatedEditor:
    """A rule of fine-tuning, and how much of what it changes is kept."""

    def __init__(self, bench: Bench) -> None:
        assert isinstance(bench.settings, LiSettings)  # the registry pairs rules with their settings
        self.bench, self.settings = bench, bench.settings
        kind = rule_of(self.settings.inner).settings
        shared = {*StoreSettings.__struct_fields__, *TuningSettings.__struct_fields__} - {"editor"}
        given = {name: getattr(self.settings, name) for name in shared}
        inner = rule_of(self.settings.inner).make(
            Bench(bench.loaded, kind(editor=self.settings.inner, **given), bench.fixed)
        )
        assert isinstance(inner, TunedEditor)
        self.inner = inner

    @property
    def phrasings(self) -> int:
        """Those of the inner rule."""
        return self.inner.phrasings

    def require(self, fact: Fact) -> None:
        """It takes any fact that the model can take."""

    def kept_rows(self, facts: Sequence[Fact]) -> Sequence[Row]:
        """It keeps no keys."""
        return ()

    def overlay(self, state: State) -> Shifts:
        """W₀ + ΔW."""
        return Shifts(state.shifts)

    def learn(self, state: State, lesson: Lesson) -> Change:
        """What the inner rule would change, a share of it; see `Editor.learn`.

        Of a rule that teaches a batch where the state is it is the batch's shift that is interpolated, towards the
        state; of one that begins at the base all of ΔW, towards the base.
        """
        change = self.inner.learn(state, lesson)
        brought = change.parts[WEIGHTS]
        left = [fact for digest, fact in state.live.items() if digest not in set(lesson.retire)]
        if isinstance(brought, Whole):
            return self._whole(change, brought, {}, [*left, *lesson.facts], "")
        assert isinstance(brought, Added)
        moved = {n: torch.from_numpy(materialise(shift)) for n, shift in brought.shift.items()}
        before = {name: shift.float().cpu() for name, shift in state.shifts.items()}
        alpha, told = self._share(before, moved, lesson.facts, left, state.digest)
        shift = {name: Dense((alpha * found).numpy()) for name, found in moved.items()}
        return Change({WEIGHTS: Added(shift)}, change.report | told)

    def relearn(
        self,
        facts: Sequence[Fact],
        *,
        start: Mapping[str, Tensor] | None = None,
        identity: str = "",
        say: Say = silent,
    ) -> Change:
        """What the inner rule makes of all facts, a share of it; see `Editor.relearn`."""
        change = self.inner.relearn(facts, start=start, identity=identity, say=say)
        brought = change.parts[WEIGHTS]
        assert isinstance(brought, Whole)
        return self._whole(change, brought, start or {}, facts, identity)

    def _whole(
        self, change: Change, brought: Whole, start: Mapping[str, Tensor], facts: Sequence[Fact], identity: str
    ) -> Change:
        """A change that gives the weights whole, drawn back towards where it began."""
        before = {name: shift.float().cpu() for name, shift in start.items()}
        found = {name: torch.from_numpy(array) for name, array in brought.arrays.items()}
        moved = {name: shift - before[name] if name in before else shift for name, shift in found.items()}
        alpha, told = self._share(before, moved, facts, (), identity)
        kept = {name: shift.numpy() for name, shift in interpolated(before, moved, alpha).items()}
        return Change({WEIGHTS: Whole(kept)}, change.report | told)

    def _share(
        self,
        before: Mapping[str, Tensor],
        moved: Mapping[str, Tensor],
        facts: Sequence[Fact],
        others: Sequence[Fact],
        identity: str,
    ) -> tuple[float, dict[str, object]]:
        """The share of a change that is kept, and what is told of it: of several with the best score the least.

        others: live facts beside those that are taught, of whose subjects no preserved prompt may speak.
        """
        s = self.settings
        if s.alpha is not None:
            return s.alpha, {"alpha": s.alpha}
        ordered = sorted(facts, key=lambda fact: fact.digest)
        drawn = ("validation", s.seed, identity, tuple(fact.digest for fact in ordered))
        asked = self.asked([ordered[i] for i in draw(len(ordered), s.validation, *drawn)])
        kept = self.kept([*ordered, *others], drawn)
        alphas = [(number + 1) / s.grid for number in range(s.grid)]
        points = robustness_curve(self.bench, before, moved, asked, kept, alphas)
        best = max(points, key=lambda point: point.score)
        return best.alpha, {"alpha": best.alpha, "curve": [msgspec.to_builtins(point) for point in points]}

    def asked(self, facts: Sequence[Fact]) -> list[Row]:
        """Facts as they are asked: in their own words, and in those rephrases that are not taught."""
        rows = [row for own in self.inner.items(facts, "new") for row in own[:1]]
        task, loaded = self.bench.task, self.bench.loaded
        for fact in facts:
            others = unseen_of(fact, self.phrasings)
            encoded = [task.encode(loaded, leading(loaded, prompt), fact.answer, fact.subject) for prompt in others]
            rows += [Row(found, "new", 1.0, fact.digest) for found in encoded]
        return rows

    def kept(self, facts: Sequence[Fact], drawn: tuple[object, ...]) -> list[Row]:
        """Preserved prompts with the base model's answers, none of a subject of the facts; derived where none are."""
        s, prompts = self.settings, self.bench.preserved
        if prompts.probes:
            free = prompts.free(subjects_of(facts))
            return [prompts.row(free[i], 1.0) for i in draw(len(free), s.validation, "kept", *drawn)]
        options = {"tokens": s.preserved_tokens, "micro_batch": s.micro_batch}
        return derived_rows(self.bench.loaded, facts, s.validation, *drawn, weight=1.0, **options)


def make(bench: Bench) -> InterpolatedEditor:
    """The rule on its bench, around the one that its settings name."""
    return InterpolatedEditor(bench)
