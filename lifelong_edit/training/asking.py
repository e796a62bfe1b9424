"""How the facts of a trial are asked: teacher-forced, or by generation in every form of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lifelong_edit.eval.metrics.verdicts import ask_unchanged, base_answers
from lifelong_edit.judging.gate import right_answers
from lifelong_edit.models import LoadedModel, Question
from lifelong_edit.tasks import leading
from lifelong_edit.training.run import Held, Scores, ask_held, neighbours_right

PROBES = 2
"""How many of the neighbours that a fact brings are asked, where none are held out."""

Kept = tuple[Question, tuple[int, ...]]
"""A question, and what the base model says to it."""


@dataclass
class Asking:
    """Asks the facts of trials. generated: by generation, else teacher-forced in plain text (`ask_held`)."""

    generated: bool
    _kept: dict[int, list[Kept]] = field(default_factory=dict)

    def scores(self, loaded: LoadedModel, held: Held) -> Scores:
        """The scores of the model as it stands; NaN where there is nothing to ask.

        By generation an answer is right that is so in every form. Locality is asked of the neighbours that are held
        out; where there are none, of those that the facts bring, whose answers must be the base model's.
        """
        if not self.generated:
            return ask_held(loaded, held)
        taught = [(f, f.answer) for f in held.taught]
        pairs = zip(held.asked, held.taught, strict=True)
        asked = [(f if said == f.prompt else said, f.answer) for said, f in pairs]
        local = self.neighbours_right(loaded, held) if held.neighbours else self._unchanged(loaded, held)
        return Scores(_mean(right_answers(loaded, taught)), _mean(right_answers(loaded, asked)), _mean(local))

    def neighbours_right(self, loaded: LoadedModel, held: Held) -> list[bool]:
        """Of each neighbour that is held out whether the model as it stands answers its `target_true`."""
        if not self.generated:
            return neighbours_right(loaded, held)
        return right_answers(loaded, [(f, f.joined(f.target_true or "")) for f in held.neighbours])

    def _unchanged(self, loaded: LoadedModel, held: Held) -> list[bool]:
        """Whether the neighbours that facts bring are answered as by the base model, in the leading form."""
        if id(held) not in self._kept:  # a search has two, which live as long as it does
            probes = [probe for fact in held.taught for probe in fact.locality[:PROBES]]
            asked = [(leading(loaded, probe), probe.target) for probe in probes]
            said = base_answers(loaded, asked)
            self._kept[id(held)] = [(q, answer) for (q, _), answer in zip(asked, said, strict=True)]
        kept = self._kept[id(held)]
        if not kept:
            return []
        results = ask_unchanged(loaded, [q for q, _ in kept], [answer for _, answer in kept])
        return [result.generated for result in results]


def _mean(right: Sequence[bool]) -> float:
    return float(np.mean(right)) if right else float("nan")
