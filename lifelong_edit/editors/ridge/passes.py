"""One pass: trace rows, ask, and hand keys and value differences to the system that is to be solved.

Batches, training and reconsolidation make their passes here. What they solve differs in form alone: few rows that are
needed again afterwards (`RowSystem`), or sums over more rows than anybody could hold (`SumSystem`).
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lifelong_edit.bench import Bench
from lifelong_edit.editors.ridge.targets import Asker
from lifelong_edit.errors import StepRefusedError
from lifelong_edit.numerics.devices import to_solve
from lifelong_edit.numerics.grams import to_grid
from lifelong_edit.numerics.lowrank import Gram, LowRank
from lifelong_edit.numerics.solver import Gathered, Held, Solution, Thin, solve, solve_sums
from lifelong_edit.stores import Dense, FactKeys, Factors, Shift, materialise
from lifelong_edit.tracing.rows import Row
from lifelong_edit.tracing.trace import Trace, trace
from lifelong_edit.world import ALONE, World


class System(Protocol):
    """A ridge regression per module while its rows come."""

    def take(self, module: str, keys: Tensor, values: Tensor, weights: Tensor) -> None:
        """Rows of a module: keys (n, d_in), value differences (n, d_out), weights (n,)."""


def one_pass(
    bench: Bench, asker: Asker, rows: Sequence[Row], system: System, preserved_step: float, traced: Trace | None = None
) -> Trace:
    """Trace rows at the model's present weights, ask, and hand all modules' rows from this one trace on (Jacobi).

    Of several processes each asks for its own modules. preserved_step: of preserved rows, relative to facts'. traced:
    where they have been traced already.
    """
    seen = trace(bench.loaded, rows, bench.settings.micro_batch) if traced is None else traced

    def hand(name: str) -> None:
        gradients = seen.gradients[name]
        if preserved_step != 1:
            preserved = seen.kinds(rows, name, "preserved")[:, None]
            gradients = torch.where(preserved, preserved_step * gradients, gradients)
        values = asker.ask(name, seen.keys[name], gradients)
        system.take(name, seen.keys[name], values, seen.weights(rows, name))

    bench.loaded.world.kept(bench.names, hand)
    return seen


LARGE = 2**24
"""Entries of a matrix from which on a batch holds its shift as factors alone, and ΔW once: 64 MiB in float32."""


class RowSystem:
    """A = Σ w kᵀk + P + λI, solved at once for all rows of a module.

    values: D (n, d_out) as asked, with its graph where there is one; solutions: by module. Of several processes each
    has those of its own modules. before: ΔW before the pass, where nobody needs the solutions of large matrices but for
    their factors; own: modules whose ΔW may be written to.
    """

    def __init__(
        self,
        held: Held,
        ridges: Mapping[str, float],
        before: Mapping[str, Tensor] | None = None,
        own: Container[str] = (),
    ) -> None:
        self._held, self._ridges, self._before, self._own = held, ridges, before or {}, own
        self.values: dict[str, Tensor] = {}
        self.solutions: dict[str, Solution] = {}
        self.thin: dict[str, Thin] = {}
        self._moved: dict[str, Tensor] = {}

    def take(self, module: str, keys: Tensor, values: Tensor, weights: Tensor) -> None:
        """Solve for the rows of a module. Raises StepRefusedError as `solve` does."""
        preserved, factor = self._held[module]
        self.values[module] = values
        found = solve(keys, values.detach(), weights, preserved, self._ridges[module], factor)
        before = self._before.get(module)
        if before is None or before.numel() < LARGE:
            self.solutions[module] = found
            return
        self.thin[module] = Thin(found.influence().float())
        shift = found.shift.float().to(before.device)
        self._moved[module] = before.add_(shift) if module in self._own else before + shift

    def moved(self, shifts: Mapping[str, Tensor], world: World = ALONE) -> dict[str, Tensor]:
        """ΔW after the pass, by module (d_in, d_out) float32, in all processes of a world."""

        def of(name: str) -> Tensor:
            if name in self._moved:
                return self._moved[name]
            return shifts[name] + self.solutions[name].shift.float().to(shifts[name].device)

        return {name: found.to(shifts[name].device) for name, found in world.named(shifts, of).items()}


class SumSystem:
    """A = P + λI + Σ w kᵀk and R = Σ w kᵀd per module, float64, while the rows go by; `grams` are P, written to.

    Of a P that is kept by its rows the rows are gathered, until they are so many that the sums are less.
    """

    def __init__(self, grams: Mapping[str, Gram], ridges: Mapping[str, float]) -> None:
        self._grams, self._rights = dict[str, Tensor](), dict[str, Tensor]()
        self._few: dict[str, Gathered] = {}
        for name, gram in grams.items():
            if isinstance(gram, LowRank):
                self._few[name] = Gathered(gram, ridges[name])
            else:
                gram.diagonal().add_(ridges[name])
                self._grams[name] = gram

    def take(self, module: str, keys: Tensor, values: Tensor, weights: Tensor) -> None:
        """Add the rows of a module."""
        if module in self._few:
            if not self._few[module].take(keys, values, weights):
                self._grams[module], self._rights[module] = self._few.pop(module).sums()
            return
        keys = to_solve(keys)
        weighted = to_solve(weights)[:, None] * keys
        self._grams[module].addmm_(weighted.T, keys)
        right = weighted.T @ to_solve(values)
        self._rights[module] = self._rights[module] + right if module in self._rights else right

    def shift(self, module: str) -> Tensor:
        """S = A⁻¹R, (d_in, d_out). Raises StepRefusedError as `solve_sums` does."""
        if module in self._few:
            return self._few[module].shift()
        return solve_sums(self._grams[module], self._rights[module])


def total_shift(passes: Sequence[tuple[Tensor, Solution | Thin]]) -> Shift:
    """The shift of all passes of one module, from each one's D and solution: as factors where these are smaller.

    Raises StepRefusedError where a number is not finite.
    """
    solved = [solution for _, solution in passes if isinstance(solution, Solution)]
    if len(solved) < len(passes):
        return _of_factors(passes)
    dense = sum((solution.shift for solution in solved), start=torch.zeros(())).float().cpu().numpy()
    if not np.isfinite(dense).all():
        raise StepRefusedError("a weight shift is not finite; expected numbers; the step was refused")
    rows = sum(len(values) for values, _ in passes)
    if rows * sum(dense.shape) >= dense.size:
        return Dense(dense)
    return Factors(*_factors(passes))


def _factors(passes: Sequence[tuple[Tensor, Solution | Thin]]) -> tuple[np.ndarray, np.ndarray]:
    left = torch.cat([solution.influence() for _, solution in passes], dim=1)
    right = torch.cat([values for values, _ in passes])
    return left.float().cpu().numpy(), right.float().cpu().numpy()


def _of_factors(passes: Sequence[tuple[Tensor, Solution | Thin]]) -> Shift:
    """The same of a large matrix, which is never in memory beside its factors unless it is to be stored whole."""
    left, right = _factors(passes)
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        raise StepRefusedError("a weight shift is not finite; expected numbers; the step was refused")
    found = Factors(left, right)
    return found if left.size + right.size < left.shape[0] * right.shape[1] else Dense(materialise(found))


def fact_keys(
    bench: Bench, traced: Trace, rows: Sequence[Row], conflict: Mapping[str, np.ndarray]
) -> dict[str, FactKeys]:
    """The keys of fact rows in a trace, on the grid, by fact; rows of no fact are passed over.

    conflict: digest → (d_in,), the facts' conflict keys, which no trace at edited weights can tell.
    """
    for name in bench.names:
        # A finite shift can still overflow a layer above it; on the grid that would become a silent zero.
        if not bool(torch.isfinite(traced.keys[name]).all()):
            raise StepRefusedError(f"a key of {name} is not finite; expected numbers; the step was refused")
    units = {n: to_grid(traced.keys[n], bench.scale[n]) for n in bench.names}
    facts = dict.fromkeys(row.fact for row in rows if row.fact is not None)
    spans: dict[str, dict[str, list[int]]] = {n: {digest: [] for digest in facts} for n in bench.names}
    for name, where in spans.items():
        for position, row in enumerate(traced.row[name].tolist()):
            digest = rows[row].fact
            if digest is not None:
                where[digest].append(position)
    return {
        digest: FactKeys({n: units[n][spans[n][digest]] for n in bench.names}, conflict[digest]) for digest in facts
    }
