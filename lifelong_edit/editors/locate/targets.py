"""The target search: what the hidden state at a subject's last token should be, so that its fact is answered.

Of each fact a vector δ is sought by gradient steps, alone, with no weight changed (Meng et al., arXiv 2202.05262,
equation 4; arXiv 2210.07229, equation 16): the mean loss of the answer behind contexts, the divergence of what follows
the subject in "{subject} is a", and the size of δ. As published: the loss is looked at before each step and the search
stops there, so that there is one step fewer than looks; the size is not squared; after each step δ is taken back to its
bound. Facts are searched for side by side and do not see each other. What stands before a subject's last token is the
same at every look: a model whose texts can be cut reads it once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lifelong_edit.bench import Bench
from lifelong_edit.editors.locate.published import MEDIAN, RATE, Constants
from lifelong_edit.editors.locate.settings import LocateSettings
from lifelong_edit.editors.locate.sites import Site
from lifelong_edit.errors import StepRefusedError
from lifelong_edit.models import TokenBatch, by_length
from lifelong_edit.tasks import Cutter
from lifelong_edit.tracing.rows import Row
from lifelong_edit.tracing.trace import accumulate, losses_of_rows

BETAS, TINY = (0.9, 0.999), 1e-8
"""Adam's, as torch has them."""


@dataclass(frozen=True)
class Wanted:
    """What was found. change: δ (n, d); losses: (n,) of each fact's rows as they were last looked at; looks: rounds."""

    change: Tensor
    losses: Tensor
    looks: int


@dataclass
class Bound:
    """Adam's steps of δ (n, d), each fact with a rate of its own, within a ball around zero. rate, radius: (n, 1)."""

    change: Tensor
    rate: Tensor
    radius: Tensor

    def __post_init__(self) -> None:
        self._mean, self._square = torch.zeros_like(self.change), torch.zeros_like(self.change)

    def step(self, number: int, awake: Tensor, gradient: Tensor) -> None:
        """Step `number`, counted from 1, of those facts that are awake, (n,) bool; gradient: (n, d)."""
        first, second = BETAS
        self._mean = first * self._mean + (1 - first) * gradient
        self._square = second * self._square + (1 - second) * gradient.square()
        mean, square = self._mean / (1 - first**number), self._square / (1 - second**number)
        moved = self.change - self.rate * mean / (square.sqrt() + TINY)
        size = moved.norm(dim=1, keepdim=True)
        moved = torch.where(size > self.radius, moved * (self.radius / size.clamp_min(TINY)), moved)
        self.change = torch.where(awake[:, None], moved, self.change)


class TargetSearch:
    """A search at one site. rows: of each fact; essences: of each fact "{subject} is a", where it can be asked.

    cutter: how texts are cut; None: rows are read whole at every look.
    """

    def __init__(
        self,
        bench: Bench,
        settings: LocateSettings,
        constants: Constants,
        site: Site,
        rows: Sequence[Sequence[Row]],
        essences: Sequence[Row | None],
        cutter: Cutter | None = None,
    ) -> None:
        self.bench, self.settings, self.constants, self.site = bench, settings, constants, site
        self.rows, self.essences, self.cutter = rows, essences, cutter
        self._before: dict[int, Tensor] = {}
        self._begun: dict[tuple[int, ...], Any] = {}

    def run(self, states: Tensor) -> Wanted:
        """Search from δ = 0; states: h₀ (n, d), what the facts' prompts show at the site."""
        found, c = torch.zeros_like(states), self.constants
        self._begin()
        size = states.norm(dim=1, keepdim=True)
        typical = MEDIAN * states.abs().median(dim=1, keepdim=True).values
        rate = RATE * typical if c.rate is None else torch.full_like(size, c.rate)
        bound = Bound(found, rate, c.clamp * size)
        awake, losses = torch.ones(len(states), dtype=torch.bool, device=states.device), torch.zeros(len(states))
        looks = 0
        for looks in range(1, c.steps + 1):
            change = bound.change.clone().requires_grad_()
            part = [i for i, still in enumerate(awake.tolist()) if still]
            seen = self.look(change, part)
            penalty = c.decay * change.norm(dim=1) / size[:, 0].clamp_min(TINY).square()
            total = seen + penalty.detach().cpu()
            losses[part] = total[part]
            awake[[i for i in part if float(total[i]) < self.settings.enough]] = False
            if looks == c.steps or not bool(awake.any()):
                break
            penalty.sum().backward()
            bound.step(looks, awake, _finite(change.grad))
        return Wanted(bound.change, losses, looks)

    def look(self, change: Tensor, facts: Sequence[int]) -> Tensor:
        """The loss of some facts with δ in place, (n,) on the CPU, and its gradient added to `change`."""
        rows = [(row, i, 1 / len(self.rows[i])) for i in facts for row in self.rows[i]]
        rows += [(row, i, self.settings.kl) for i in facts if (row := self.essences[i]) is not None]
        found, known = torch.zeros(len(change)), set(self._before)

        def work(chosen: list[int]) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
            part = [rows[i] for i in chosen]
            losses = self._losses([row for row, _, _ in part], [i for _, i, _ in part], change)
            weighted = losses * torch.tensor([weight for _, _, weight in part], device=losses.device)
            (slope,) = torch.autograd.grad(weighted.sum(), [change])
            first = {i: self._before[i] for _, i, _ in part if i in self._before and i not in known}
            return weighted.detach().cpu(), slope, first

        batches = list(by_length([len(row.encoded.ids) for row, _, _ in rows], self.settings.micro_batch))
        for chosen, (weighted, slope, first) in zip(batches, self.bench.loaded.world.each(batches, work), strict=True):
            found.index_add_(0, torch.tensor([rows[i][1] for i in chosen]), weighted)
            accumulate(change, slope)
            self._before |= first
        return found

    def _losses(self, rows: Sequence[Row], facts: Sequence[int], change: Tensor) -> Tensor:
        """The loss of each row, (rows,): cross-entropy, or the divergence from what was there at the first look."""
        task, (batch, begun) = self.bench.task, self._collated(rows)
        added = change[torch.tensor(facts, device=change.device)]

        def move(states: Tensor) -> Tensor:
            shaped, place = states.reshape(*batch.ids.shape, -1), states.device
            at = (torch.arange(len(rows), device=place), batch.subjects[:, 1].to(place) - 1)
            return shaped.index_put(at, added.to(shaped), accumulate=True).reshape(states.shape)

        loaded = self.bench.loaded
        with torch.enable_grad(), self.site.watched(loaded.model, move):
            logits = task.logits(loaded, batch) if self.cutter is None else self.cutter.logits(batch, begun)
            loss, row = task.loss(logits, batch, rows)
        found = torch.zeros(len(rows), device=loss.device).index_add(0, row, loss)
        held = [i for i, r in enumerate(rows) if r.kind == "preserved"]
        if not held:
            return found
        kept = torch.stack([self._divergence(facts[i], logits[row == i][0]) for i in held])
        return found.index_put((torch.tensor(held, device=found.device),), kept)

    def _begin(self) -> None:
        """Read what stands before each anchor, at the model's present weights."""
        if self.cutter is None:
            return
        rows = [*(row for own in self.rows for row in own), *(row for row in self.essences if row is not None)]
        texts = list(dict.fromkeys(_before(row) for row in rows))
        self._begun = dict(zip(texts, self.cutter.begin(texts, self.settings.micro_batch), strict=True))

    def _collated(self, rows: Sequence[Row]) -> tuple[TokenBatch, list[Any]]:
        """Rows as one input, from their anchors on where they can be cut, and what was kept before each."""
        encoded, begun = [row.encoded for row in rows], []
        if self.cutter is not None:
            begun = [self._begun[_before(row)] for row in rows]
            encoded = self.cutter.ends_of(encoded, begun)
        return self.bench.task.collate(self.bench.loaded, encoded), begun

    def _divergence(self, fact: int, logits: Tensor) -> Tensor:
        """KL(before ‖ now) of the next token; before is what the first look saw, when δ was zero."""
        now = logits.log_softmax(-1)
        before = self._before.setdefault(fact, now.detach())
        return (before.exp() * (before - now)).sum()


def _before(row: Row) -> tuple[int, ...]:
    """The tokens before a row's anchor, the last one of its subject."""
    return tuple(row.encoded.ids[: row.encoded.subject[1] - 1])


def _finite(gradient: Tensor | None) -> Tensor:
    assert gradient is not None  # the size of δ alone gives one
    if not bool(torch.isfinite(gradient).all()):
        raise StepRefusedError("a gradient of the target search is not finite; expected numbers; the step was refused")
    return gradient


def answered(bench: Bench, rows: Sequence[Row], micro_batch: int) -> tuple[Tensor, Tensor]:
    """Losses of rows and those at their worst tokens, (rows,) each, at the model's present weights."""

    def work(chosen: list[int]) -> list[tuple[float, float]]:
        part = [rows[i] for i in chosen]
        batch = bench.task.collate(bench.loaded, [row.encoded for row in part])
        with torch.no_grad():
            loss, row = bench.task.loss(bench.task.logits(bench.loaded, batch), batch, part)
        losses, worst = losses_of_rows(bench.task, part, loss, row)
        return list(zip(losses.tolist(), worst.tolist(), strict=True))

    found = bench.loaded.world.across(by_length([len(row.encoded.ids) for row in rows], micro_batch), work)
    return torch.tensor([loss for loss, _ in found]), torch.tensor([worst for _, worst in found])
