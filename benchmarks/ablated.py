"""The passes of a canonical reconsolidation with one thing done otherwise, for what no setting can say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lifelong_edit.editors.contract import Asker
from lifelong_edit.editors.ridge.batch import Bench
from lifelong_edit.editors.ridge.gradient import GradientEditor, linear_steps, output_metric, output_metrics, within
from lifelong_edit.editors.ridge.together import CHUNK, SAMPLE, _asker, _directions, _slices, _Sums, for_all
from lifelong_edit.facts import Fact
from lifelong_edit.numerics.solver import solve_sums
from lifelong_edit.tracing.rows import Row, draw, drawn_rows, fact_rows, subjects_of
from lifelong_edit.tracing.trace import trace


@dataclass(frozen=True)
class Otherwise:
    """What is done otherwise than in `reconsolidate`.

    refresh: in each pass the output metric is that of the sample's gradients at the present weights: `metric` alone, at
    the length that the first one would ask there, or the `step` with it. in_turn: every pass moves one module, the
    lowest first, and the next is traced anew (Gauss–Seidel). free: the shift is looked for where the mean gram of what
    is preserved has eigenvalues below this multiple of their mean (AlphaEdit, arXiv 2410.02355, projects on the null
    space of text keys), None: everywhere. near: half the preserved rows are those nearest to the facts.
    """

    refresh: Literal["", "metric", "step"] = ""
    in_turn: bool = False
    free: float | None = None
    near: bool = True


def solve_otherwise(bench: Bench, facts: Sequence[Fact], otherwise: Otherwise) -> dict[str, Tensor]:
    """ΔW by module (d_in, d_out), from the base weights; that of `reconsolidate` where nothing is done otherwise.

    Of the settings `reconsolidation_gain` is not looked at: all passes are made.
    """
    bench = for_all(bench)
    s, facts = bench.settings, sorted(facts, key=lambda fact: fact.digest)
    identity = (s.seed, "", tuple(f.digest for f in facts))
    rule = _Refreshed(bench, facts, identity) if otherwise.refresh else None
    asker, subjects = _asker(bench, facts, identity), subjects_of(facts)
    fixed = {n: bench.preservation(n, {}, subjects) for n in bench.names}
    spaces = {} if otherwise.free is None else {n: free_space(fixed[n], otherwise.free) for n in bench.names}
    near = _directions(bench, facts) if otherwise.near else torch.zeros(0, 1)
    shifts = {m.name: torch.zeros(m.d_in, m.d_out, device=bench.loaded.device) for m in bench.loaded.modules}
    own = [fact_rows(bench.loaded.tokenizer, part, s.phrasings) for part in _slices(facts, CHUNK)]
    for number in range(s.reconsolidation_passes):
        moved = [bench.names[number % len(bench.names)]] if otherwise.in_turn else bench.names
        if number:
            shifts |= {n: (1 - s.reconsolidation_decay) * shifts[n] for n in moved}
        bench.loaded.set_shifts(shifts)
        if rule is not None and number:
            asker = rule.at_present(bench, otherwise.refresh == "step")
        kept = bench.preserved.rows(s.reconsolidation_preserved, near, s.preserved_weight, subjects, *identity, number)
        sums = _Sums({n: fixed[n].clone() for n in moved}, bench)
        for part in own:
            sums.take(asker, drawn_rows(part, s.reconsolidation_phrasings, s.seed, "", number))
        for part in _slices(kept, 4 * CHUNK):
            sums.take(asker, part)
        shifts |= {n: shifts[n] + _shift(sums, n, spaces).to(shifts[n]) for n in moved}
    return shifts


def free_space(preserved: Tensor, threshold: float) -> Tensor:
    """Eigenvectors of P (d_in, d_in) with eigenvalues below `threshold` times the mean one, (d_in, free)."""
    values, vectors = torch.linalg.eigh(preserved)
    return vectors[:, values < threshold * values.mean()]


def _shift(sums: _Sums, name: str, spaces: Mapping[str, Tensor]) -> Tensor:
    """S, the best within the module's free space where there is one: V(VᵀAV)⁻¹VᵀR."""
    if name not in spaces:
        return sums.shift(name)
    space = spaces[name]
    return space @ solve_sums(space.T @ sums.grams[name] @ space, space.T @ sums.rights[name])


class _Refreshed:
    """The rule of a sample of the facts, at the base weights and again at others."""

    def __init__(self, bench: Bench, facts: Sequence[Fact], identity: tuple[object, ...]) -> None:
        s = bench.settings
        sample = [facts[i] for i in draw(len(facts), SAMPLE, "metric", *identity)]
        self.rows: list[Row] = fact_rows(bench.loaded.tokenizer, sample, s.phrasings)
        bench.loaded.set_shifts({})
        traced = trace(bench.loaded, self.rows, s.micro_batch)
        self.metric, loss = output_metrics(traced.gradients, s.kappa), float(traced.losses.sum())
        self.step = linear_steps(s.reconsolidation_eta, traced.gradients, self.metric, loss)

    def at_present(self, bench: Bench, step: bool) -> Asker:
        """The rule with the metric, and with `step` the step too, of the gradients at the model's present weights."""
        s = bench.settings
        traced = trace(bench.loaded, self.rows, s.micro_batch)
        if step:
            editor = GradientEditor(s.reconsolidation_eta, s.kappa, s.trust)
            return editor.ready(traced.keys, traced.gradients, {}, float(traced.losses.sum()))
        # In its own metric the sample has root mean square 1: what is left is the length that the first one would ask.
        length = {
            n: self.step[n] * float((g @ self.metric[n]).square().mean().sqrt()) for n, g in traced.gradients.items()
        }
        metric = {n: output_metric(g, s.kappa) for n, g in traced.gradients.items()}

        def ask(module: str, keys: Tensor, gradients: Tensor) -> Tensor:
            return within(-length[module] * gradients @ metric[module], self.step[module] * s.trust)

        return Asker(ask)
