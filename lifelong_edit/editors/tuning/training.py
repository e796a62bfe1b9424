"""Adam on edited weights, counted in steps: the same facts at the same state give the same weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lifelong_edit.bench import Bench, Say, silent
from lifelong_edit.editors.tuning.gradients import weight_gradients
from lifelong_edit.editors.tuning.settings import TuningSettings
from lifelong_edit.errors import StepRefusedError
from lifelong_edit.tracing.rows import Row, shuffled

Items = Sequence[Sequence[Row]]
"""The rows of each fact."""


@dataclass
class Beside:
    """What a step asks beside the facts that it teaches: rows of earlier facts, fact by fact, and preserved ones."""

    facts: list[list[Row]] = field(default_factory=list)
    preserved: list[Row] = field(default_factory=list)


Replay = Callable[[int], Beside]
"""What stands beside the facts of a step, by its number, counted from 0."""


def nothing(step: int) -> Beside:
    """Nothing beside them."""
    return Beside()


class Tuning:
    """ΔW on its way. shifts: ΔW by module to begin with, (d_in, d_out); the model is only lent.

    preserved_weight: of the mean divergence at preserved rows against the mean loss of the facts.
    """

    def __init__(
        self, bench: Bench, settings: TuningSettings, shifts: Mapping[str, Tensor], preserved_weight: float = 0.0
    ) -> None:
        self.bench, self.settings, self._preserved_weight = bench, settings, preserved_weight
        self.shifts = {
            m.name: shifts[m.name].detach().to(bench.loaded.device_of(m.name), torch.float32, copy=True)
            if m.name in shifts
            else torch.zeros(m.d_in, m.d_out, device=bench.loaded.device_of(m.name))
            for m in bench.loaded.modules
        }
        self._before = {name: shift.clone() for name, shift in self.shifts.items()} if settings.norm else {}
        groups = [{"params": [shift], "lr": self._rate(name)} for name, shift in self.shifts.items()]
        self._adam = torch.optim.Adam(groups, lr=settings.rate, eps=settings.epsilon)
        self.steps = 0
        self.losses: list[float] = []

    def _rate(self, module: str) -> float:
        """Adam's rate for a module."""
        if self.settings.relative_rate is None:
            return self.settings.rate
        weight = self.bench.loaded.base_weight(module)
        return self.settings.relative_rate * float(weight.square().mean().sqrt())

    def run(self, items: Items, drawn: tuple[object, ...], beside: Replay = nothing, say: Say = silent) -> None:
        """Epochs over the facts until their mean loss is small. drawn: what the order of the facts depends on.

        Raises StepRefusedError where a loss or a gradient is not finite.
        """
        s = self.settings
        for epoch in range(s.epochs):
            order, total = shuffled(len(items), "order", *drawn, epoch), 0.0
            for start in range(0, len(order), s.batch):
                part = [items[i] for i in order[start : start + s.batch]]
                total += self.step(part, beside(self.steps)) * len(part)
            self.losses.append(total / len(items))
            say(f"epoch {epoch + 1} of {s.epochs} over {len(items)} facts: loss {self.losses[-1]:.3f}")
            if self.losses[-1] < s.enough:
                break

    def step(self, items: Items, beside: Beside) -> float:
        """One step of Adam; the mean loss of the facts before it, by which it is decided whether it is made."""
        taught = [*items, *beside.facts]
        rows = [row for own in taught for row in own] + beside.preserved
        weights = [1 / (len(own) * len(taught)) for own in taught for _ in own]
        weights += [self._preserved_weight / len(beside.preserved) for _ in beside.preserved]
        with self.bench.loaded.at(self.shifts):
            gradients, losses = weight_gradients(self.bench, rows, weights)
        own = iter(losses.tolist())
        loss: float = sum(sum(next(own) for _ in rows) / len(rows) for rows in items) / len(items)
        if not all(bool(torch.isfinite(found).all()) for found in (losses, *gradients.values())):
            raise StepRefusedError("a gradient or a loss is not finite; expected numbers; the step was refused")
        self.steps += 1
        if loss >= self.settings.enough:
            for name, shift in self.shifts.items():
                shift.grad = gradients[name]
            self._adam.step()
            self._bound()
        return loss

    def _bound(self) -> None:
        """No weight further from where it was than the settings allow."""
        for name, before in self._before.items():
            moved = (self.shifts[name] - before).clamp_(-(self.settings.norm or 0.0), self.settings.norm)
            self.shifts[name].copy_(before + moved)

    def report(self) -> dict[str, object]:
        """How it went: by epoch the facts' mean loss before its steps."""
        norm = {name: float(shift.norm()) for name, shift in self.shifts.items()}
        return {"steps": self.steps, "epochs": len(self.losses), "loss": self.losses, "norm": norm}
