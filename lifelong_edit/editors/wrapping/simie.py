"""SimIE (ICML 2025): each batch is edited into the base, and the edits are joined by least squares over the tokens.

With E_t the rule's edit of the base for batch t and K_t the keys of all its tokens there, ΔW is the minimum of
Σ_t‖K_t(ΔW − E_t)‖² + λ‖ΔW‖², made batch after batch from ΔW and P = λI + Σ KᵀK alone. P is not stored: it is derived
from the live facts, so what is replaced, retracted or rolled back is out of it to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lifelong_edit.bench import Bench, Say, State, silent
from lifelong_edit.editors.contract import Added, Change, Editor, Lesson, Whole, require_cold
from lifelong_edit.editors.wrapping.around import Around
from lifelong_edit.facts import Fact
from lifelong_edit.models import BASE
from lifelong_edit.numerics.grams import ExactGram, to_grid
from lifelong_edit.numerics.reshaping import joined
from lifelong_edit.stores import WEIGHTS, Dense, FactKeys
from lifelong_edit.tracing.rows import fact_rows
from lifelong_edit.tracing.trace import recording


class Simie(Around):
    """The wrapper at work. anchor: λ, None relative to the gram of text."""

    def __init__(self, bench: Bench, inner: Editor, anchor: float | None) -> None:
        super().__init__(bench, inner)
        self.anchor = anchor
        self._all = {n: ExactGram(n, bench.scale[n]) for n in bench.names}
        self._tokens: dict[str, FactKeys] = {}

    def ridge(self, module: str) -> float:
        """λ of a module."""
        grams = self.bench.text_gram
        return grams.trace(module) / grams.width(module) if self.anchor is None else self.anchor

    def learn(self, state: State, lesson: Lesson) -> Change:
        """The rule's edit of the base for a batch, joined to those before; see `Editor.learn`."""
        gone = set(lesson.retire)
        left = {digest: fact for digest, fact in state.live.items() if digest not in gone}
        alone = Lesson(lesson.facts, (), lesson.conflict, lesson.replaced, lesson.hidden)
        change = self.inner.learn(State(digest=state.digest), alone)
        edits = change.weights(self._zeros())
        new = {fact.digest: fact for fact in lesson.facts}
        tokens = self.tokens([*left.values(), *lesson.facts])
        shift, after = {}, {}
        for module in self.bench.loaded.modules:
            name = module.name
            before = state.shifts.get(name, torch.zeros(module.d_in, module.d_out)).float().cpu()
            gram = ExactGram(name, self.bench.scale[name]).over({digest: tokens[digest] for digest in new})
            wanted = torch.from_numpy(edits[name])
            found = joined(before, wanted, gram, self._all[name].over(tokens), self.ridge(name))
            moved = (found.cpu() - before.double()).float()
            shift[name], after[name] = Dense(moved.numpy()), before + moved
        found_change = Change({**change.parts, WEIGHTS: Added(shift)}, change.report | self._told(after, edits))
        return self.rekeyed(found_change, after, left | new, lesson)

    def relearn(
        self,
        facts: Sequence[Fact],
        *,
        start: Mapping[str, Tensor] | None = None,
        identity: str = "",
        say: Say = silent,
    ) -> Change:
        """All facts as one batch; see `Editor.relearn`. Raises UsageError for a warm start: there is none."""
        require_cold(start, "simie edits from the base alone")
        change = self.inner.relearn(facts, start=None, identity=identity, say=say)
        edits, tokens, after = change.weights(self._zeros()), self.tokens(facts), dict[str, Tensor]()
        for name in self.bench.names:
            wanted = torch.from_numpy(edits[name])
            gram = self._all[name].over(tokens)
            after[name] = joined(torch.zeros_like(wanted), wanted, gram, gram, self.ridge(name)).float().cpu()
        whole = Whole({name: shift.numpy() for name, shift in after.items()})
        made = Change({**change.parts, WEIGHTS: whole}, change.report | self._told(after, edits))
        return self.all_rekeyed(made, after, facts)

    def tokens(self, facts: Sequence[Fact]) -> dict[str, FactKeys]:
        """By digest the keys of facts at all tokens of prompt and answer in the base model, on the grid.

        Each text goes through the model alone: behind others it would be rounded otherwise, and a state read from a
        store would differ from one that was never closed.
        """
        bench, found = self.bench, dict[str, FactKeys]()
        with bench.loaded.at(BASE):
            for fact in facts:
                known = self._tokens.get(fact.digest)
                found[fact.digest] = self._keys_of(fact) if known is None else known
        self._tokens = dict(found)
        return found

    def _keys_of(self, fact: Fact) -> FactKeys:
        bench, task = self.bench, self.bench.task
        keys: dict[str, list[Any]] = {name: [] for name in bench.names}
        for row in fact_rows(bench.loaded, [fact], self.phrasings):
            batch = task.collate(bench.loaded, [row.encoded])
            with torch.no_grad(), recording(bench.loaded, gradients=False) as (inputs, _):
                task.logits(bench.loaded, batch)
            for name, seen in inputs.items():
                keys[name].append(to_grid(seen.reshape(-1, seen.shape[-1]).float(), bench.scale[name]))
        return FactKeys({name: np.concatenate(rows) for name, rows in keys.items()}, np.zeros(0, np.float32))

    def _zeros(self) -> dict[str, Any]:
        return {m.name: np.zeros((m.d_in, m.d_out), np.float32) for m in self.bench.loaded.modules}

    def _told(self, after: Mapping[str, Tensor], edits: Mapping[str, Any]) -> dict[str, object]:
        """Norms of ΔW as it is now, and of the batch's edit of the base."""
        norms = {name: float(shift.norm()) for name, shift in after.items()}
        return {"joined": norms, "edit": {name: float(np.linalg.norm(edit)) for name, edit in edits.items()}}


def make(bench: Bench, inner: Editor) -> Simie:
    """The wrapper around a rule."""
    s: Any = bench.settings  # of a class made for the pair
    return Simie(bench, inner, s.anchor)
