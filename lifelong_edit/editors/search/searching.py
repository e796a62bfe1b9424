"""The search: value differences of all facts of a solve at once, with the edit that they make in place.

A ridge regression is linear in what it is asked: S = A⁻¹Kᵀ D. So with the keys K and what holds still fixed, the edited
model is a function of D, and the loss of the facts *in the edited model* can be lowered by gradients of D. MEMIT (Meng
et al., arXiv 2210.07229) and ROME search a change of one hidden state per fact and then look for weights that bring it
about; what the facts do to each other, and what the weights do elsewhere, is left to the solve. Here the search sees
both: the other facts of the batch, and preserved prompts, are asked in the same model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lifelong_edit.bench import Bench, Say, silent
from lifelong_edit.editors.search.adapters import Adapted
from lifelong_edit.editors.search.material import Asking, Material
from lifelong_edit.editors.search.settings import SearchingSettings, SearchSettings
from lifelong_edit.errors import StepRefusedError
from lifelong_edit.models import LoadedModel, Overlay, by_length
from lifelong_edit.tasks import Cutter
from lifelong_edit.tracing.rows import Row, shuffled
from lifelong_edit.tracing.trace import accumulate, losses_of_rows

REST = 4
"""Facts at rest are asked again every so many rounds: what others learn may have unsettled them."""
_TINY = torch.finfo(torch.float32).tiny


@dataclass
class Variables:
    """What is searched for: of each module U (d_in, m), and D (m, d_out), a row for each group of keys.

    A group is what is to be answered alike: of a module edited at the subject all keys of a fact, in its own words and
    behind contexts; of one edited at the answer each position of its prompt. owner: (m,) number of each group's fact.
    scale: root mean square of the module's outputs at these keys in the base model: the unit of a step.
    """

    left: dict[str, Tensor]
    right: dict[str, Tensor]
    owner: dict[str, Tensor]
    scale: dict[str, float]

    @classmethod
    def none(cls) -> Variables:
        """Of no module yet."""
        return cls({}, {}, {}, {})

    def add(self, bench: Bench, name: str, keys: Tensor, influence: Tensor, group: Tensor, owner: Tensor) -> None:
        """A module, with D = 0. keys: K (n, d_in); influence: A⁻¹Kᵀ (d_in, n) float64; group: (n,) of each key.

        U_g = A⁻¹ Σ kᵀ over the keys of group g, divided by the mean of what these keys meet in it: so a row of D is
        what the outputs at its group's keys change by in the mean.
        """
        device, count = bench.loaded.device_of(name), len(owner)
        group = group.to(influence.device)
        left = torch.zeros(len(influence), count, dtype=influence.dtype, device=influence.device)
        left.index_add_(1, group, influence)
        met = (keys.to(left) * left[:, group].T).sum(1)
        mean = torch.zeros(count, dtype=left.dtype, device=left.device).index_add_(0, group, met)
        mean /= torch.bincount(group, minlength=count).clamp_min(1)
        self.left[name] = (left / mean.clamp_min(torch.finfo(left.dtype).tiny)).float().to(device)
        self.right[name] = torch.zeros(count, bench.loaded.module(name).d_out, device=device)
        self.owner[name] = owner.cpu()
        base = keys.to(device) @ bench.loaded.base_weight(name)
        self.scale[name] = float(base.square().mean().sqrt()) if len(keys) else 1.0

    def shifts(self) -> dict[str, Tensor]:
        """S = UD by module, (d_in, d_out) float32."""
        return {name: left @ self.right[name] for name, left in self.left.items()}

    def keys_of(self, facts: Iterable[int]) -> dict[str, Tensor]:
        """By module the numbers of the keys that facts own."""
        wanted = torch.tensor(sorted(facts))
        return {name: torch.isin(owner, wanted).nonzero()[:, 0] for name, owner in self.owner.items()}


@dataclass
class Asked:
    """What one round saw. losses, worst: by fact the mean loss of its rows, the greatest at any token of its answers.

    divergence: mean over the preserved prompts.
    """

    losses: dict[int, float] = field(default_factory=dict)
    worst: dict[int, float] = field(default_factory=dict)
    divergence: float = 0.0


class Search(ABC):
    """Rounds over facts, some at a time. drawn: what draws depend on.

    What the variables are to the model is said by `overlay`, what is to hold still beside the facts by `kept`.
    """

    def __init__(
        self,
        bench: Bench,
        settings: SearchingSettings,
        variables: Variables,
        material: Asking,
        drawn: tuple[object, ...],
        at_once: int | None = None,
        say: Say = silent,
    ) -> None:
        self.bench, self.settings, self.variables, self.material = bench, settings, variables, material
        self._drawn, self._say = drawn, say
        self._at_once = at_once or len(material.rows)
        self._adam = Adam(variables, settings.rate, settings.decay)
        self.cutter: Cutter | None = None
        self.losses: list[float] = []
        self.divergences: list[float] = []

    @abstractmethod
    def overlay(self, held: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> Overlay:
        """The model with what was found so far, and on top of it what D of some keys changes by.

        held: by module the numbers of these keys; right: of them, (keys, d_out) zeros that gradients reach.
        """

    def kept(self, facts: Sequence[int], *drawn: object) -> tuple[list[Row], float]:
        """Rows whose answers must stay, asked beside some facts in a round, and the weight of each."""
        return [], 0.0

    def cut(self, rows: Sequence[Row]) -> tuple[Sequence[Row], Sequence[Any] | None]:
        """Rows without the tokens at which nothing is searched for, and what the model keeps of these.

        None where rows are whole, as of a search without a `cutter`.
        """
        return rows, None

    def report(self) -> dict[str, object]:
        """How it went: by round the facts' mean loss and the preserved prompts' mean divergence before it."""
        return {"rounds": len(self.losses), "loss": self.losses, "divergence": self.divergences}

    def run(self, rounds: int) -> None:
        """Search until all facts are at rest, `rounds` times over them at the most; a further run goes on."""
        before = len(self.losses)
        everyone = range(len(self.material.rows))
        last: dict[int, float] = {}
        resting: set[int] = set()
        for number in range(before, before + rounds):
            self._adam.slow((number - before) / rounds)
            again = number % REST == REST - 1 or len(resting) == len(everyone)
            order = shuffled(len(everyone), "order", *self._drawn, number)
            spread, count = [], 0
            for start in range(0, len(everyone), self._at_once):
                part = sorted(order[start : start + self._at_once])
                awake = part if again else [i for i in part if i not in resting]
                if not awake:
                    continue
                asked = self.round(part, awake, number)
                count += len(awake)
                last |= asked.losses
                spread.append(asked.divergence)
                resting -= set(awake)
                resting |= {i for i, worst in asked.worst.items() if worst < self.settings.enough}
            self.losses.append(sum(last.values()) / len(last))
            self.divergences.append(sum(spread) / len(spread))
            self._say(f"round {number + 1} of {before + rounds}: {count} facts, loss {self.losses[-1]:.3f}")
            if again and len(resting) == len(everyone):
                break

    def round(self, facts: Sequence[int], awake: Sequence[int], number: int) -> Asked:
        """Ask those of some facts that are awake, and what is kept, and move the D of all these facts by one step.

        The gradient is that of the sum over the awake of their mean losses, and of the weighted losses of what is kept.
        """
        s, bench, held = self.settings, self.bench, self.variables.keys_of(facts)
        right = {n: torch.zeros_like(self.variables.right[n][keys]).requires_grad_() for n, keys in held.items()}
        drawn = (*self._drawn, number)
        own = {i: self.material.of(i, *drawn) for i in awake}
        kept, weight = self.kept(facts, *drawn)
        rows = [row for found in own.values() for row in found] + kept
        weights = [1 / len(found) for found in own.values() for _ in found] + [weight] * len(kept)
        asked, begun = self.cut(rows)
        with bench.loaded.at(self.overlay(held, right)):
            losses, worst = differentiated(bench, s, asked, weights, list(right.values()), self.cutter, begun)
        for name, keys in held.items():
            self._adam.step(self.variables, name, keys, _gradient(name, right[name]))
        return _by_fact([i for i, found in own.items() for _ in found] + [-1] * len(kept), losses, worst)


class ThroughSolve(Search):
    """The search of the rule `search`: D through S = UD on top of ΔW, held by preserved prompts in the same model."""

    settings: SearchSettings
    material: Material

    def __init__(self, *arguments: Any, shifts: Mapping[str, Tensor], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._shifts = shifts

    def shifts(self) -> dict[str, Tensor]:
        """ΔW with what was found so far, (d_in, d_out) by module."""
        return {n: self._shifts[n].to(found) + found for n, found in self.variables.shifts().items()}

    def overlay(self, held: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> Overlay:
        """W₀ + ΔW + UD, and beside it the columns of U that belong to the keys."""
        left = {n: self.variables.left[n][:, keys] for n, keys in held.items()}
        return Adapted(self.shifts(), left, right)

    def kept(self, facts: Sequence[int], *drawn: object) -> tuple[list[Row], float]:
        """Preserved prompts, which weigh as much as `preserved_weight` says against the mean loss of these facts."""
        s = self.settings
        rows = self.material.held(s.preserved_at_once, *drawn, *facts[:1])
        return rows, s.preserved_weight * len(facts) / max(1, len(rows))


class Adam:
    """Adam (Kingma and Ba, arXiv 1412.6980) for some keys at a time, with a rate in units of each module's outputs."""

    BETAS = (0.9, 0.99)
    SLOWEST = 0.1

    def __init__(self, variables: Variables, rate: float, decay: float) -> None:
        self._rate = self._now = rate
        self._decay = decay
        self._mean = {n: torch.zeros_like(d) for n, d in variables.right.items()}
        self._square = {n: torch.zeros_like(d) for n, d in variables.right.items()}
        self._steps = {n: torch.zeros(len(d), 1, device=d.device) for n, d in variables.right.items()}

    def slow(self, spent: float) -> None:
        """The rate falls along a straight line to SLOWEST of itself; spent: the share of the rounds that is over."""
        self._now = self._rate * (1 - (1 - self.SLOWEST) * spent)

    def step(self, variables: Variables, name: str, keys: Tensor, gradient: Tensor) -> None:
        """D ← (1 − decay) D − rate · scale · m / √v for the keys of a module; gradient: (keys, d_out)."""
        first, second = self.BETAS
        mean, square = self._mean[name], self._square[name]
        self._steps[name][keys] += 1
        mean[keys] = first * mean[keys] + (1 - first) * gradient
        square[keys] = second * square[keys] + (1 - second) * gradient.square()
        steps = self._steps[name][keys]
        moved = (mean[keys] / (1 - first**steps)) / ((square[keys] / (1 - second**steps)).sqrt() + _TINY**0.5)
        right = variables.right[name]
        right[keys] = (1 - self._decay) * right[keys] - self._now * variables.scale[name] * moved


def differentiated(
    bench: Bench,
    s: SearchingSettings,
    rows: Sequence[Row],
    weights: Sequence[float],
    variables: Sequence[Tensor],
    cutter: Cutter | None = None,
    begun: Sequence[Any] | None = None,
) -> tuple[Tensor, Tensor]:
    """Add the gradient of Σ weight · loss over rows to the variables; (rows,) losses, and those at the worst tokens.

    begun: what the cutter kept before each row, where rows are cut.
    """
    task, loaded = bench.task, bench.loaded
    losses, worst = torch.zeros(len(rows)), torch.zeros(len(rows))
    weight = torch.tensor(weights)

    def work(chosen: list[int]) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        part = [rows[i] for i in chosen]
        batch = task.collate(loaded, [r.encoded for r in part])
        with torch.enable_grad(), narrowed(bench.loaded, s):
            if cutter is None or begun is None:
                logits = task.logits(loaded, batch)
            else:
                logits = cutter.logits(batch, [begun[i] for i in chosen])
            loss, row = task.loss(logits, batch, part)
            weighted = (loss * weight[chosen].to(loss)[row]).sum()
        slopes = torch.autograd.grad(weighted, variables, allow_unused=True)
        return *losses_of_rows(task, part, loss, row), list(slopes)

    batches = list(by_length([len(r.encoded.ids) for r in rows], s.micro_batch))
    for chosen, (loss, most, slopes) in zip(batches, loaded.world.each(batches, work), strict=True):
        losses[chosen], worst[chosen] = loss, most
        for variable, slope in zip(variables, slopes, strict=True):
            accumulate(variable, slope)
    return losses, worst


def narrowed(loaded: LoadedModel, s: SearchingSettings) -> AbstractContextManager[object]:
    """Passes in the number format of the search, where that is narrower than the model's."""
    if s.placed(loaded.device).precision == "float32" or loaded.dtype != torch.float32:
        return nullcontext()
    return torch.autocast(loaded.device.type, dtype=torch.bfloat16)


def _by_fact(owner: Sequence[int], losses: Tensor, worst: Tensor) -> Asked:
    """Losses of rows by the facts that own them; −1 owns the preserved prompts."""
    asked = Asked()
    for fact in dict.fromkeys(owner):
        rows = [i for i, of in enumerate(owner) if of == fact]
        if fact < 0:
            asked.divergence = float(losses[rows].mean())
        else:
            asked.losses[fact], asked.worst[fact] = float(losses[rows].mean()), float(worst[rows].max())
    return asked


def _gradient(name: str, variable: Tensor) -> Tensor:
    found = torch.zeros_like(variable) if variable.grad is None else variable.grad
    if not bool(torch.isfinite(found).all()):
        raise StepRefusedError(f"a gradient at {name} is not finite; expected numbers; the step was refused")
    return found
