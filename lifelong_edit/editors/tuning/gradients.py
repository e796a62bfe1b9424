"""The gradient of a loss with respect to edited weights, at those that the model stands at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lifelong_edit.bench import Bench
from lifelong_edit.models import by_length
from lifelong_edit.tracing.rows import Row
from lifelong_edit.tracing.trace import losses_of_rows, recording


def weight_gradients(bench: Bench, rows: Sequence[Row], weights: Sequence[float]) -> tuple[dict[str, Tensor], Tensor]:
    """∂/∂W of Σ weight · loss over rows, by module (d_in, d_out) float32 where each is; and the (rows,) losses.

    Of y = kW it is Σ kᵀ ∂/∂y over all positions, those of the prompt among them: every token runs through the matrix.
    No parameter of the model is touched.
    """
    task, loaded = bench.task, bench.loaded
    found = {m.name: torch.zeros(m.d_in, m.d_out, device=loaded.device_of(m.name)) for m in loaded.modules}
    losses, weight = torch.zeros(len(rows)), torch.tensor(weights)
    for chosen in by_length([len(row.encoded.ids) for row in rows], bench.settings.micro_batch):
        part = [rows[i] for i in chosen]
        batch = task.collate(loaded, [row.encoded for row in part])
        with torch.enable_grad(), recording(loaded, gradients=True) as (inputs, outputs):
            loss, row = task.loss(task.logits(loaded, batch), batch, part)
            total = (loss * weight[chosen].to(loss)[row]).sum()
        gradients = torch.autograd.grad(total, [outputs[name] for name in bench.names])
        for name, gradient in zip(bench.names, gradients, strict=True):
            keys = inputs[name].to(gradient.device).flatten(0, -2).float()
            found[name].addmm_(keys.T, gradient.flatten(0, -2).float())
        losses[chosen] = losses_of_rows(task, part, loss, row)[0]
    return found, losses
