"""The passes of a canonical reconsolidation with one thing done otherwise, for what no setting can say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lifelong_edit.editors.contract import Whole
from lifelong_edit.editors.ridge.editor import RidgeEditor
from lifelong_edit.editors.ridge.gradient import GradientTargets, linear_steps, output_metrics, within
from lifelong_edit.editors.ridge.passes import SumSystem
from lifelong_edit.editors.ridge.targets import Asker, Seen
from lifelong_edit.editors.ridge.together import SAMPLE, Together
from lifelong_edit.facts import Fact
from lifelong_edit.models import BASE
from lifelong_edit.numerics.solver import solve_sums
from lifelong_edit.stores import WEIGHTS
from lifelong_edit.tracing.rows import Row, draw


@dataclass(frozen=True)
class Otherwise:
    """What is done otherwise than in a canonical reconsolidation.

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


def solve_otherwise(editor: RidgeEditor, facts: Sequence[Fact], otherwise: Otherwise) -> dict[str, Tensor]:
    """ΔW by module (d_in, d_out), from the base weights; that of `relearn` where nothing is done otherwise."""
    whole = Ablated(editor, otherwise).solve(facts, None, "").parts[WEIGHTS]
    assert isinstance(whole, Whole)
    return {name: torch.from_numpy(array) for name, array in whole.arrays.items()}


def free_space(preserved: Tensor, threshold: float) -> Tensor:
    """Eigenvectors of P (d_in, d_in) with eigenvalues below `threshold` times the mean one, (d_in, free)."""
    values, vectors = torch.linalg.eigh(preserved)
    return vectors[:, values < threshold * values.mean()]


class Ablated(Together):
    """One solve over all facts, done otherwise. The rule asks as the one without a network does."""

    def __init__(self, editor: RidgeEditor, otherwise: Otherwise) -> None:
        super().__init__(editor.bench, editor.settings, editor.for_all, editor.preservation, editor.ridges())
        self.otherwise = otherwise
        self.sample: list[Fact] = []
        self.first: Refreshed | None = None
        self.spaces: dict[str, Tensor] = {}

    def ready(self, facts: Sequence[Fact], drawn: tuple[object, ...]) -> Asker:
        """As without anything done otherwise; where the metric is refreshed, the sample and the first one are kept."""
        if self.otherwise.refresh:
            targets = self.targets
            assert isinstance(targets, GradientTargets)
            self.sample = [facts[i] for i in draw(len(facts), SAMPLE, "metric", *drawn)]
            with self.bench.loaded.at(BASE):
                self.first = Refreshed(targets, self.seen(self.sample))
        return super().ready(facts, drawn)

    def directions(self, facts: Sequence[Fact]) -> Tensor:
        """Where preserved prompts are looked for: nowhere, if none are to be near."""
        return super().directions(facts) if self.otherwise.near else torch.zeros(0, 1)

    def once(
        self,
        number: int,
        asker: Asker,
        shifts: Mapping[str, Tensor],
        fixed: Mapping[str, Tensor],
        parts: Sequence[Sequence[Row]],
    ) -> tuple[dict[str, Tensor], float]:
        """ΔW after a pass that moves one module, or all, and the facts' summed loss before it."""
        names, shifts = self.bench.names, dict(shifts)
        moved = [names[number % len(names)]] if self.otherwise.in_turn else names
        if number:
            shifts |= {n: (1 - self.settings.reconsolidation_decay) * shifts[n] for n in moved}
            asker = self.refreshed(asker, shifts)
        system = Among({n: fixed[n].clone() for n in moved}, self.ridges, self.free(fixed))
        loss = self.sum_up(system, asker, shifts, parts)
        return shifts | {n: shifts[n] + system.shift(n).to(shifts[n]) for n in moved}, loss

    def free(self, fixed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The free space of each module, found once; none where shifts are looked for everywhere."""
        threshold = self.otherwise.free
        if threshold is not None and not self.spaces:
            self.spaces = {name: free_space(gram, threshold) for name, gram in fixed.items()}
        return self.spaces

    def refreshed(self, asker: Asker, shifts: Mapping[str, Tensor]) -> Asker:
        """The rule made ready anew at ΔW, where that is done otherwise."""
        if self.first is None:
            return asker
        with self.bench.loaded.at(shifts):
            present = self.seen(self.sample)
        return self.targets.ready(present, {}) if self.otherwise.refresh == "step" else self.first.at(present)


class Among(SumSystem):
    """The sums of those modules that a pass moves; a shift is looked for in the module's space, where there is one."""

    def __init__(self, grams: dict[str, Tensor], ridges: Mapping[str, float], spaces: Mapping[str, Tensor]) -> None:
        super().__init__(grams, ridges)
        self._spaces = spaces

    def take(self, module: str, keys: Tensor, values: Tensor, weights: Tensor) -> None:
        """Add the rows of a module, if it moves."""
        if module in self._grams:
            super().take(module, keys, values, weights)

    def shift(self, module: str) -> Tensor:
        """S, the best within the space: V(VᵀAV)⁻¹VᵀR."""
        if module not in self._spaces:
            return super().shift(module)
        space = self._spaces[module]
        return space @ solve_sums(space.T @ self._grams[module] @ space, space.T @ self._rights[module])


class Refreshed:
    """The rule's metric at other weights than the base, at the length that the one of the base weights would ask."""

    def __init__(self, targets: GradientTargets, seen: Seen) -> None:
        self.kappa, self.trust = targets.kappa, targets.trust
        self.metric = output_metrics(seen.gradients, self.kappa)
        self.step = linear_steps(targets.eta, seen.gradients, self.metric, seen.loss)

    def at(self, seen: Seen) -> Asker:
        """The rule with the metric of the gradients that the sample shows now."""
        # In its own metric the sample has root mean square 1: what is left is the length that the first one would ask.
        length = {
            n: self.step[n] * float((g @ self.metric[n]).square().mean().sqrt()) for n, g in seen.gradients.items()
        }
        metric = output_metrics(seen.gradients, self.kappa)

        def ask(module: str, keys: Tensor, gradients: Tensor) -> Tensor:
            return within(-length[module] * gradients @ metric[module], self.step[module] * self.trust)

        return Asker(ask)
