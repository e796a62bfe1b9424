"""LocFT-BF: a state's weights are a function of the facts in force, and of nothing that came before."""

from __future__ import annotations

from lifelong_edit.bench import Bench, State
from lifelong_edit.editors.contract import Change, Lesson, require_batch
from lifelong_edit.editors.tuning.editor import TunedEditor, usual

__all__ = ["make", "usual"]


class BreadthFirst(TunedEditor):
    """The rule at work: to learn a batch is to learn all facts again with it."""

    def learn(self, state: State, lesson: Lesson) -> Change:
        """All live facts and those of the batch, together from the base; see `Editor.learn`."""
        require_batch(lesson.facts)
        gone = set(lesson.retire)
        left = {digest: fact for digest, fact in state.live.items() if digest not in gone}
        return self.together(list((left | {fact.digest: fact for fact in lesson.facts}).values()), {}, "")


def make(bench: Bench) -> BreadthFirst:
    """The rule on its bench."""
    return BreadthFirst(bench)
