"""Interpolation at work: another rule proposes, a share of its proposal is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from torch import Tensor

from lifelong_edit.bench import Bench
from lifelong_edit.editors.contract import Editor
from lifelong_edit.editors.li.curve import robustness_curve
from lifelong_edit.editors.li.settings import LiSettings
from lifelong_edit.editors.registry import rule_of
from lifelong_edit.editors.tuning.editor import TunedEditor, usual
from lifelong_edit.editors.tuning.settings import TuningSettings
from lifelong_edit.editors.wrapping.around import Arrays, Occasion, Reshaped
from lifelong_edit.facts import Fact
from lifelong_edit.settings import StoreSettings
from lifelong_edit.tasks import leading
from lifelong_edit.tracing.derived import derived_rows
from lifelong_edit.tracing.rows import Row, draw, fact_rows, subjects_of, unseen_of

__all__ = ["make", "usual"]


@dataclass(frozen=True)
class Choice:
    """How the share is chosen; see `LiSettings`, whose fields of these names they are."""

    alpha: float | None
    grid: int
    validation: int


class InterpolatedEditor(Reshaped):
    """A rule, and how much of what it changes is kept.

    Of a rule that teaches a batch where the state is it is the batch's shift that is interpolated, towards the state;
    of one that begins at the base all of ΔW, towards the base.
    """

    def __init__(self, bench: Bench, inner: Editor, choice: Choice) -> None:
        super().__init__(bench, inner)
        self.choice = choice

    def reshaped(self, before: Arrays, moved: Arrays, occasion: Occasion) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The share of a shift that is kept, and the curve by which it was chosen."""
        alpha, told = self._share(before, moved, occasion)
        return {name: alpha * shift for name, shift in moved.items()}, told

    def _share(self, before: Arrays, moved: Arrays, occasion: Occasion) -> tuple[float, dict[str, Any]]:
        """The share of a change that is kept, and what is told of it: of several with the best score the least."""
        choice, facts = self.choice, occasion.facts
        if choice.alpha is not None:
            return choice.alpha, {"alpha": choice.alpha}
        ordered = sorted(facts, key=lambda fact: fact.digest)
        drawn = ("validation", self.bench.settings.seed, occasion.identity, tuple(fact.digest for fact in ordered))
        asked = self.asked([ordered[i] for i in draw(len(ordered), choice.validation, *drawn)])
        # live facts beside those that are taught: of their subjects no preserved prompt may speak
        kept = self.kept([*ordered, *occasion.others], drawn)
        alphas = [(number + 1) / choice.grid for number in range(choice.grid)]
        points = robustness_curve(self.bench, before, moved, asked, kept, alphas)
        best = max(points, key=lambda point: point.score)
        return best.alpha, {"alpha": best.alpha, "curve": [msgspec.to_builtins(point) for point in points]}

    def asked(self, facts: Sequence[Fact]) -> list[Row]:
        """Facts as they are asked: in their own words, and in those rephrases that are not taught."""
        rows = self._prompts(facts)
        task, loaded = self.bench.task, self.bench.loaded
        for fact in facts:
            others = unseen_of(fact, self.phrasings)
            encoded = [task.encode(loaded, leading(loaded, prompt), fact.answer, fact.subject) for prompt in others]
            rows += [Row(found, "new", 1.0, fact.digest) for found in encoded]
        return rows

    def _prompts(self, facts: Sequence[Fact]) -> list[Row]:
        """The prompt of each fact with what is taught behind it: of fine-tuning maybe the end of the text."""
        if isinstance(self.inner, TunedEditor):
            return [row for own in self.inner.items(facts, "new") for row in own[:1]]
        first = {row.fact: row for row in reversed(fact_rows(self.bench.loaded, facts, 0))}
        return [first[fact.digest] for fact in facts]

    def kept(self, facts: Sequence[Fact], drawn: tuple[object, ...]) -> list[Row]:
        """Preserved prompts with the base model's answers, none of a subject of the facts; derived where none are."""
        s, count, prompts = self.bench.settings, self.choice.validation, self.bench.preserved
        if prompts.probes:
            free = prompts.free(subjects_of(facts))
            return [prompts.row(free[i], 1.0) for i in draw(len(free), count, "kept", *drawn)]
        options = {"tokens": s.preserved_tokens, "micro_batch": s.micro_batch}
        return derived_rows(self.bench.loaded, facts, count, *drawn, weight=1.0, **options)


def make(bench: Bench) -> InterpolatedEditor:
    """The rule on its bench, around the one that its settings name."""
    s = bench.settings
    assert isinstance(s, LiSettings)  # the registry pairs rules with their settings
    rule = rule_of(s.inner)
    shared = {*StoreSettings.__struct_fields__, *TuningSettings.__struct_fields__} - {"editor"}
    settings = rule.settings(editor=s.inner, **{name: getattr(s, name) for name in shared})
    return InterpolatedEditor(bench, rule.make(bench.under(settings)), Choice(s.alpha, s.grid, s.validation))
