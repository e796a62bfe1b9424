"""Hooks at work: sequential MEMIT on copies of the matrices, and from which score on each copy speaks."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lifelong_edit.bench import Bench, Say, State, silent
from lifelong_edit.editors.coachhook.overlay import Hook, Hooked, Running, sizes_of
from lifelong_edit.editors.coachhook.settings import CoachHookSettings
from lifelong_edit.editors.contract import Change, Entries, Lesson
from lifelong_edit.editors.locate.editor import Work, fix, require, usual
from lifelong_edit.editors.memit_seq.rule import SequentialMemit
from lifelong_edit.facts import Fact
from lifelong_edit.models import BASE, Encoded, Overlay, by_length
from lifelong_edit.stores import Entry
from lifelong_edit.tracing.rows import fact_rows
from lifelong_edit.tracing.trace import recording

__all__ = ["CoachHookEditor", "fix", "make", "require", "usual"]

SCORES = "scores"


@dataclass
class Hooking(Work):
    """A change on its way, and from which score on each copy speaks meanwhile, by matrix."""

    alphas: Mapping[str, float] = field(default_factory=dict)


class CoachHookEditor(SequentialMemit):
    """Facts in, shifts of copies out, and of each fact by how much it stands out at each matrix.

    What is logged as weights are the copies' shifts: the base weights stay as they are. From which score on a copy
    speaks is not kept but follows from the scores of the facts in force: `alpha`, or the least of them.
    """

    cutter = None
    """A hook counts all tokens of a text: it cannot be read in two parts that belong to different passes."""

    def overlay(self, state: State) -> Overlay:
        """The hooks of a state; without a shift the base model."""
        return self._hooked(state.shifts, self._alphas(state.parts.get(SCORES, {})))

    def begun(self, state: State, gone: Container[str]) -> Hooking:
        """A change that begins at a state."""
        scores = {digest: held for digest, held in state.parts.get(SCORES, {}).items() if digest not in gone}
        return Hooking(super().begun(state, gone).shifts, alphas=self._alphas(scores))

    def standing(self, work: Work, module: str | None = None) -> Overlay:
        """Hooks with what was changed so far; while matrices are solved those not yet done speak at every token."""
        assert isinstance(work, Hooking)
        everywhere = set() if module is None else set(self.bench.names) - work.done
        return self._hooked(work.shifts, {n: a for n, a in work.alphas.items() if n not in everywhere})

    def _hooked(self, shifts: Mapping[str, Tensor], alphas: Mapping[str, float]) -> Overlay:
        place = self.bench.loaded.device_of
        moved = {name: shift for name, shift in shifts.items() if bool(shift.any())}
        return Hooked([Hook(n, shift.to(place(n)), alphas.get(n)) for n, shift in moved.items()]) if moved else BASE

    def _alphas(self, scores: Mapping[str, Any]) -> dict[str, float]:
        """From which score on each copy speaks, by matrix, from the scores of the facts in force."""
        assert isinstance(self.settings, CoachHookSettings)
        least = np.full(len(self.bench.names), self.settings.alpha)
        for entry in scores.values():
            least = np.minimum(least, entry.rows["score"].min(0))
        return dict(zip(self.bench.names, least.tolist(), strict=True))

    def learn(self, state: State, lesson: Lesson) -> Change:
        """What teaching a batch would change, see `Editor.learn`."""
        change = super().learn(state, lesson)
        before = {name: shift.cpu().numpy() for name, shift in self.begun(state, ()).shifts.items()}
        return self._scored(change, before, lesson.facts, whole=False)

    def relearn(
        self,
        facts: Sequence[Fact],
        *,
        start: Mapping[str, Tensor] | None = None,
        identity: str = "",
        say: Say = silent,
    ) -> Change:
        """All facts as one batch, see `Editor.relearn`."""
        change = super().relearn(facts, start=start, identity=identity, say=say)
        return self._scored(change, {}, sorted(facts, key=lambda fact: fact.digest), whole=True)

    def _scored(
        self, change: Change, before: Mapping[str, npt.NDArray[np.float32]], facts: Sequence[Fact], whole: bool
    ) -> Change:
        """The change with the scores of its facts, by what it makes of the copies."""
        after = {name: torch.from_numpy(array) for name, array in change.weights(dict(before)).items()}
        entries = {digest: Entry({"score": found}) for digest, found in self.scores(facts, after).items()}
        report = change.report | {"alpha": self._alphas(entries)}
        return replace(change, parts={**change.parts, SCORES: Entries(lambda: iter([entries]), whole)}, report=report)

    def scores(self, facts: Sequence[Fact], shifts: Mapping[str, Tensor]) -> dict[str, npt.NDArray[np.float32]]:
        """By digest the greatest score in each prompt of a fact at each matrix, (prompts, matrices), where none speaks.

        A prompt in which nothing can stand out, of one token, has −∞ and would have copies speak everywhere: it has
        `alpha` instead, and its edit shows nowhere by itself.
        """
        assert isinstance(self.settings, CoachHookSettings)
        loaded, rows = self.bench.loaded, fact_rows(self.bench.loaded, facts, self.settings.phrasings)
        asked = [Encoded.of(row.encoded.prompt) for row in rows]
        found = np.zeros((len(rows), len(self.bench.names)), np.float32)
        with loaded.at(BASE), torch.no_grad():
            for chosen in by_length([len(e.ids) for e in asked], self.settings.micro_batch):
                batch = self.bench.task.collate(loaded, [asked[i] for i in chosen])
                with recording(loaded, gradients=False) as (inputs, _):
                    self.bench.task.read(loaded, batch.ids, batch.mask)
                for j, name in enumerate(self.bench.names):
                    keys = inputs[name].reshape(*batch.mask.shape, -1)
                    _, sizes = sizes_of(keys, shifts[name].to(keys.device))
                    scores = Running().scores(sizes, batch.mask.bool().to(sizes.device)).amax(1)
                    found[chosen, j] = torch.where(scores.isfinite(), scores, self.settings.alpha).cpu().numpy()
        of: dict[str, list[int]] = {}
        for i, row in enumerate(rows):
            of.setdefault(str(row.fact), []).append(i)
        return {digest: found[numbers] for digest, numbers in of.items()}


def make(bench: Bench) -> CoachHookEditor:
    """The rule with what it fixed at `init`."""
    return CoachHookEditor(bench)
