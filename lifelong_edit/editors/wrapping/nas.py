"""NAS (arXiv 2602.02543): all hidden states that are asked for have the length that they have in a clean model.

As weights are edited, searched hidden states grow, and what they ask grows with them. The mean length is measured on
the first facts that a store is taught, searched for in the base model, and is a part of the state; with all facts
taught again, on the first of them in the order of their digests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lifelong_edit.bench import Bench, Say, State, silent
from lifelong_edit.editors.contract import Change, Editor, Lesson, Whole, require_batch, require_live
from lifelong_edit.editors.locate.editor import LocateEditor
from lifelong_edit.editors.wrapping.around import Around
from lifelong_edit.facts import Fact
from lifelong_edit.numerics.reshaping import of_length

LENGTHS = "lengths"


class Nas(Around):
    """The wrapper at work. length: None measures it on `pilots` facts."""

    def __init__(self, bench: Bench, inner: LocateEditor, length: float | None, pilots: int, too_long: float) -> None:
        super().__init__(bench, inner)
        self.located, self.length, self.pilots, self.too_long = inner, length, pilots, too_long

    def learn(self, state: State, lesson: Lesson) -> Change:
        """What the rule inside makes of hidden states of one length; see `Editor.learn`."""
        require_batch(lesson.facts)
        known = np.asarray(state.parts.get(LENGTHS, {}).get(LENGTHS, np.zeros(0)), np.float64)
        lengths = self.measured(known, lesson.facts)
        self.aim(lengths)
        return self._with(self.inner.learn(state, lesson), lengths)

    def relearn(
        self,
        facts: Sequence[Fact],
        *,
        start: Mapping[str, Tensor] | None = None,
        identity: str = "",
        say: Say = silent,
    ) -> Change:
        """What the rule inside makes of all facts so; see `Editor.relearn`."""
        require_live(facts)
        lengths = self.measured(np.zeros(0), sorted(facts, key=lambda fact: fact.digest))
        self.aim(lengths)
        return self._with(self.inner.relearn(facts, start=start, identity=identity, say=say), lengths)

    def measured(self, known: npt.NDArray[np.float64], facts: Sequence[Fact]) -> npt.NDArray[np.float64]:
        """Lengths of the pilots, (n,): those known, and of the first facts as many as are missing."""
        missing = facts[: max(0, self.pilots - len(known))] if self.length is None else ()
        if not missing:
            return known
        return np.concatenate([known, self.located.lengths(missing).double().cpu().numpy()])

    def aim(self, lengths: npt.NDArray[np.float64]) -> None:
        """Have the rule inside ask for hidden states of the length that is given, or of the pilots' mean."""
        length = float(lengths.mean()) if self.length is None else self.length
        self.located.aim = partial(of_length, length=length, too_long=self.too_long)

    def _with(self, change: Change, lengths: npt.NDArray[np.float64]) -> Change:
        mean = float(lengths.mean()) if self.length is None else self.length
        report = change.report | {"length": mean, "pilots": len(lengths)}
        return Change({**change.parts, LENGTHS: Whole({LENGTHS: lengths})}, report)


def make(bench: Bench, inner: Editor) -> Nas:
    """The wrapper around a rule that searches hidden states."""
    assert isinstance(inner, LocateEditor)  # the wrapper's declaration refuses others
    s: Any = bench.settings  # of a class made for the pair
    return Nas(bench, inner, s.length, s.pilots, s.too_long)
