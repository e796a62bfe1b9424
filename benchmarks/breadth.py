"""Breadth-first fine-tuning, the strongest of the simple rivals: all facts so far trained together, from the base.

LocFT-BF (arXiv 2509.22072): one matrix, Adam, mean cross-entropy per fact with the end of the text taught too, batches
reshuffled in each epoch, no step where the loss is small, no term for locality.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.finetuning import shift_of, trainable
from lifelong_edit.facts import Fact
from lifelong_edit.models import Encoded, LoadedModel, end_ids
from lifelong_edit.settings import AtLeastOne, NotNegative, Positive, Ranged
from lifelong_edit.tasks import task_of
from lifelong_edit.tracing.rows import Row


class Breadth(Ranged, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How it is fine-tuned; the published values but for the layer, which a model of its own size needs."""

    layer: str = "20"
    """The layer whose output projection is trained."""
    rate: Positive = 5e-4
    """Adam's."""
    epochs: AtLeastOne = 25
    """The most times over all facts."""
    batch: AtLeastOne = 100
    """Facts per step."""
    enough: NotNegative = 1e-2
    """No step below this loss, and the end where an epoch's mean is below it."""

    def told(self) -> dict[str, object]:
        """As plain values by name."""
        return {name: getattr(self, name) for name in self.__struct_fields__}


def breadth_first(loaded: LoadedModel, facts: Sequence[Fact], recipe: Breadth, seed: int) -> dict[str, Tensor]:
    """ΔW (d_in, d_out) by module, after training on all facts together. The model is left as it was."""
    task, rows = task_of(loaded), ended_rows(loaded, facts)
    generator = random.Random(seed)
    at_rest = {m.name: torch.zeros(m.d_in, m.d_out) for m in loaded.modules}  # so that leaving sets them back
    with loaded.at(at_rest), trainable(loaded) as weights:
        adam = torch.optim.Adam(list(weights.values()), lr=recipe.rate)
        for _ in range(recipe.epochs):
            generator.shuffle(rows)
            total = 0.0
            for start in range(0, len(rows), recipe.batch):
                part = rows[start : start + recipe.batch]
                batch = task.collate(loaded, [row.encoded for row in part])
                with torch.enable_grad():
                    losses, _ = task.loss(task.logits(loaded, batch), batch, part)
                    loss = losses.sum() / len(part)
                found = float(loss.detach())
                total += found * len(part)
                if found >= recipe.enough:
                    adam.zero_grad()
                    loss.backward()
                    adam.step()
            if total / len(rows) < recipe.enough:
                break
        return {name: shift_of(loaded, name, weight) for name, weight in weights.items()}


def ended_rows(loaded: LoadedModel, facts: Sequence[Fact]) -> list[Row]:
    """The facts' prompts with their answers and the end of the text."""
    task, end = task_of(loaded), min(end_ids(loaded))
    rows = []
    for fact in facts:
        encoded = task.encode(loaded, fact.prompt, fact.target, fact.subject)
        rows.append(Row(Encoded.of(encoded.prompt, (*encoded.answer, end), encoded.subject), "new", 1.0, fact.digest))
    return rows
