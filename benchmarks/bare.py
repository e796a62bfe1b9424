"""Bare forward and backward passes over the same rows: what a step's time is measured against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from lifelong_edit.models import LoadedModel, by_length, pad
from lifelong_edit.tasks.causal.scoring import answer_logits, editing_mask
from lifelong_edit.tracing.rows import Row

Kind = Literal["edited matrices", "answer positions", "all parameters"]


def bare_pass(loaded: LoadedModel, rows: Sequence[Row], micro_batch: int, kind: Kind) -> float:
    """One forward and backward pass over `rows` in micro-batches, cross-entropy on their answers; the summed loss.

    kind: "edited matrices": logits at every position, as a model gives them, gradients of the edited weight
    matrices; "all parameters": gradients of everything, as in plain training; "answer positions": as the
    first, with logits at the answer positions only, which is this project's own economy.
    """
    edited = [loaded.model.get_submodule(module.name).weight for module in loaded.modules]
    weights = list(loaded.model.parameters()) if kind == "all parameters" else edited
    total = 0.0
    for weight in weights:
        weight.requires_grad_(True)
    try:
        for chosen in by_length([len(row.encoded.ids) for row in rows], micro_batch):
            batch = pad([rows[i].encoded for i in chosen], loaded.pad_id, loaded.device)
            if kind == "answer positions":
                logits = answer_logits(loaded, batch)
            else:
                out = loaded.model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
                logits = out.logits[editing_mask(batch)]
            loss = nn.functional.cross_entropy(
                logits.float(), batch.ids[:, 1:][editing_mask(batch)[:, :-1]], reduction="sum"
            )
            torch.autograd.grad(loss, weights)
            total += float(loss.detach())
    finally:
        loaded.model.requires_grad_(False)
    return total
