"""Solving again over all live facts together (design.md, section 4), so that old edits are not slowly forgotten.

Solving again from what is stored would change nothing: successive solves are recursive least squares. What stored rows
cannot know is that keys go stale when lower modules change, and that value differences were asked for at weights that
no longer exist. So all live facts and the preserved prompts are traced again, in several passes. Knows no store.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TypeVar

import torch
from torch import Tensor

from lifelong_edit.editors.contract import Asker
from lifelong_edit.editors.ridge.batch import Bench, Say, asking, fact_keys, silent
from lifelong_edit.editors.ridge.conflictkeys import conflict_keys, conflict_of
from lifelong_edit.editors.ridge.gradient import GradientEditor
from lifelong_edit.errors import StepRefusedError, UsageError
from lifelong_edit.facts import Fact
from lifelong_edit.models.devices import to_solve
from lifelong_edit.numerics.grams import FactKeys
from lifelong_edit.numerics.solver import solve_sums
from lifelong_edit.tracing.derived import derived_rows
from lifelong_edit.tracing.rows import Row, draw, drawn_rows, fact_rows, subjects_of
from lifelong_edit.tracing.trace import trace

T = TypeVar("T")
CHUNK = 64
"""Facts, or four times as many preserved prompts, that are traced and summed at a time: memory stays flat."""
WINDOW = 4
"""Passes whose losses are looked at together."""
SAMPLE = 256
"""Facts whose gradients at the base weights make the output metric and the step."""


@dataclass(frozen=True)
class Resolved:
    """What a reconsolidation leads to: ΔW whole (d_in, d_out), the keys of all live facts there, a report.

    key_parts: moves the model there and traces the keys, CHUNK facts at a time, anew at each call: whoever stores them
    need not hold them together. Raises StepRefusedError where one is not finite.
    """

    shifts: dict[str, Tensor]
    key_parts: Callable[[], Iterator[dict[str, FactKeys]]]
    report: dict[str, object]

    @cached_property
    def keys(self) -> dict[str, FactKeys]:
        """The keys of all live facts, held together."""
        return {fact: keys for part in self.key_parts() for fact, keys in part.items()}


def reconsolidate(
    bench: Bench,
    facts: Sequence[Fact],
    *,
    start: Mapping[str, Tensor] | None = None,
    state: str = "",
    say: Say = silent,
) -> Resolved:
    """Solve for all live facts and the preserved prompts together.

    start: ΔW to begin with, by module (d_in, d_out); None is canonical: from the base weights, a function of the live
    facts and of what `init` fixed alone. state: digest of the state that a warm start comes from, for its draws. Rows
    are taken in the order of the facts' digests: in each pass the prompts and `reconsolidation_phrasings` of each
    fact's phrasings, drawn afresh. Every pass moves all modules from one trace; the last is the one with which the loss
    has `settled`, or number `reconsolidation_passes`. The rule without a network asks, with steps of its own
    (`reconsolidation_eta`): it asks for little, many times. The solve is the joint one, whatever the setting `ask`
    says of batches.

    Raises UsageError without facts, StepRefusedError where a number is not finite.
    """
    if not facts:
        raise UsageError("the store has no live facts; expected at least one to reconsolidate")
    bench = for_all(bench)
    s, facts = bench.settings, sorted(facts, key=lambda fact: fact.digest)
    identity = (s.seed, state, tuple(f.digest for f in facts))
    asker = _asker(bench, facts, identity)
    subjects = subjects_of(facts)
    fixed = {n: bench.preservation(n, {}, subjects) for n in bench.names}
    near = _directions(bench, facts)
    shifts = {m.name: torch.zeros(m.d_in, m.d_out, device=bench.loaded.device) for m in bench.loaded.modules}
    shifts = shifts if start is None else {n: start[n].to(shifts[n]) for n in shifts}
    derived = [] if bench.preserved.probes else _derived(bench, facts, identity)
    # Token numbers are a hundred times smaller than what a pass makes of them, and cost a tenth of its time to find.
    own = [fact_rows(bench.loaded.tokenizer, part, s.phrasings) for part in _slices(facts, CHUNK)]
    losses: list[float] = []
    rows = {"facts": 0, "preserved": 0}
    while len(losses) < s.reconsolidation_passes:
        shifts = {n: (1 - s.reconsolidation_decay) * shift for n, shift in shifts.items()} if losses else shifts
        bench.loaded.set_shifts(shifts)
        kept = derived or bench.preserved.rows(
            s.reconsolidation_preserved, near, s.preserved_weight, subjects, *identity, len(losses)
        )
        sums = _Sums({n: fixed[n].clone() for n in bench.names}, bench)
        for part in own:
            sums.take(asker, drawn_rows(part, s.reconsolidation_phrasings, s.seed, state, len(losses)))
        for some in _slices(kept, 4 * CHUNK):
            sums.take(asker, some)
        losses.append(sums.loss / len(facts))
        rows = {"facts": sums.rows - len(kept), "preserved": len(kept)}
        shifts = {n: shifts[n] + sums.shift(n).to(shifts[n]) for n in shifts}
        say(f"pass {len(losses)} over {len(facts)} facts and {len(kept)} preserved prompts: loss {losses[-1]:.3f}")
        if settled(losses, s.reconsolidation_gain):
            break
    norms = {n: float(shift.norm()) for n, shift in shifts.items()}
    if not all(map(math.isfinite, norms.values())):  # of the last pass, which no further solve looks at
        raise StepRefusedError("a weight shift is not finite; expected numbers; the reconsolidation was refused")
    bench.loaded.set_shifts(shifts)
    report: dict[str, object] = {"passes": len(losses), "loss": losses, "rows": rows, "norm": norms}
    return Resolved(shifts, partial(_keys, bench, facts, shifts), report)


def settled(losses: Sequence[float], gain: float) -> bool:
    """Whether the last WINDOW passes lowered the loss by less than the share `gain` of the first one each.

    Compared are means, with the WINDOW passes before them: the draw of phrasings makes the loss of one uncertain. With
    a `gain` of 0 it never has.
    """
    if not gain or len(losses) < 2 * WINDOW:
        return False
    before, after = sum(losses[-2 * WINDOW : -WINDOW]) / WINDOW, sum(losses[-WINDOW:]) / WINDOW
    return before - after < WINDOW * gain * losses[0]


def for_all(bench: Bench) -> Bench:
    """The bench with the settings of this solve: the joint one, for the published rule knows none but a batch's."""
    other = copy.copy(bench)
    other.settings = bench.settings.replace(ask="joint", preserved_keys=bench.settings.reconsolidation_keys)
    return other


class _Sums:
    """A = P + λI + Σ w kᵀk and Σ w kᵀd per module, float64, while the rows go by."""

    def __init__(self, grams: dict[str, Tensor], bench: Bench) -> None:
        self.bench, self.grams = bench, grams
        self.rights: dict[str, Tensor] = {}
        self.loss, self.rows = 0.0, 0
        for name, gram in grams.items():
            gram.diagonal().add_(bench.ridge(name))

    def take(self, asker: Asker, rows: Sequence[Row]) -> None:
        """Trace rows at the model's present weights and add them."""
        traced = trace(self.bench.loaded, rows, self.bench.settings.micro_batch)
        for name, gram in self.grams.items():
            weights, keys = to_solve(traced.weights(rows, name))[:, None], to_solve(traced.keys[name])
            values = to_solve(asker.ask(name, traced.keys[name], asking(self.bench, traced, rows, name)))
            weighted = weights * keys
            gram.addmm_(weighted.T, keys)
            right = weighted.T @ values
            self.rights[name] = self.rights[name] + right if name in self.rights else right
        self.rows += len(rows)
        self.loss += sum(row.weight * float(traced.losses[i]) for i, row in enumerate(rows) if row.kind == "new")

    def shift(self, name: str) -> Tensor:
        """S = A⁻¹ Σ w kᵀd, (d_in, d_out)."""
        return solve_sums(self.grams[name], self.rights[name])


def _slices(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _asker(bench: Bench, facts: Sequence[Fact], identity: tuple[object, ...]) -> Asker:
    """The rule with the metric and the step of a sample of the facts at the base weights."""
    s = bench.settings
    sample = [facts[i] for i in draw(len(facts), SAMPLE, "metric", *identity)]
    bench.loaded.set_shifts({})
    traced = trace(bench.loaded, fact_rows(bench.loaded.tokenizer, sample, s.phrasings), s.micro_batch)
    rule = GradientEditor(s.reconsolidation_eta, s.kappa, s.trust)
    return rule.ready(traced.keys, traced.gradients, {}, float(traced.losses.sum()))


def _derived(bench: Bench, facts: Sequence[Fact], identity: tuple[object, ...]) -> list[Row]:
    """Preserved rows made from the facts, for a store that has none: as many as there are facts at the most."""
    count = min(len(facts), bench.settings.reconsolidation_preserved)
    return derived_rows(bench.loaded, bench.settings, facts, count, *identity)


def _directions(bench: Bench, facts: Sequence[Fact]) -> Tensor:
    """Directions of up to SAMPLE·4 facts, near which preserved prompts are looked for, (n, d_in)."""
    step = -(-len(facts) // (4 * SAMPLE))
    found = conflict_keys(bench, [f.prompt for f in facts[::step]])
    return torch.from_numpy(found).to(bench.loaded.device)


def _keys(bench: Bench, facts: Sequence[Fact], shifts: Mapping[str, Tensor]) -> Iterator[dict[str, FactKeys]]:
    """The keys of all facts at the base weights plus `shifts`, CHUNK facts at a time."""
    bench.loaded.set_shifts(shifts)
    for part in _slices(facts, CHUNK):
        rows = fact_rows(bench.loaded.tokenizer, part, bench.settings.phrasings)
        traced = trace(bench.loaded, rows, bench.settings.micro_batch, gradients=False)
        yield fact_keys(bench, traced, rows, conflict_of(bench, part))
