"""Where a language model's answers are given, what they cost, and how far they are from the base model's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lifelong_edit.models import LoadedModel, TokenBatch, masked_positions
from lifelong_edit.tasks.causal.begun import Begun, joined
from lifelong_edit.tasks.contract import Example
from lifelong_edit.tasks.losses import losses_of


def editing_mask(batch: TokenBatch) -> Tensor:
    """(b, t) bool: positions whose next token is an answer token."""
    position = torch.arange(batch.ids.shape[1], device=batch.ids.device)
    return (position >= batch.answer_starts[:, None] - 1) & (position < batch.lengths[:, None] - 1)


def answer_logits(loaded: LoadedModel, batch: TokenBatch, begun: Sequence[Begun] | None = None) -> Tensor:
    """Logits at the editing positions, row by row: (n, vocabulary) float32. begun: what stands before each sequence."""
    given = {"attention_mask": batch.mask, "use_cache": False} if begun is None else joined(begun, batch)
    with masked_positions(loaded.model, editing_mask(batch)):
        out = loaded.model(input_ids=batch.ids, **given)
    logits: Tensor = out.logits[0].float()
    return logits


def position_losses(logits: Tensor, batch: TokenBatch, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Loss of each position and its row, see `losses_of`.

    Where a row is `ended`, the last of its tokens is any that ends a word.
    """
    loss, row = losses_of(logits, examples)
    if batch.breaks is not None:
        counts = torch.bincount(row, minlength=len(examples))
        last = counts.cumsum(0)[torch.tensor([r.encoded.ended for r in examples], device=counts.device)] - 1
        breaks = batch.breaks[: logits.shape[-1]]
        going_on = logits[last].logsumexp(-1) - logits[last][:, : len(breaks)][:, breaks].logsumexp(-1)
        loss = loss.index_put((last,), going_on / counts[row][last])
    return loss, row
