"""Where a language model's answers are given, what they cost, and how far they are from the base model's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lifelong_edit.models import LoadedModel, TokenBatch, masked_positions
from lifelong_edit.tasks.causal.begun import Begun, joined
from lifelong_edit.tasks.contract import Example


def editing_mask(batch: TokenBatch) -> Tensor:
    """(b, t) bool: positions whose next token is an answer token."""
    position = torch.arange(batch.ids.shape[1], device=batch.ids.device)
    return (position >= batch.answer_starts[:, None] - 1) & (position < batch.lengths[:, None] - 1)


def subject_mask(batch: TokenBatch) -> Tensor:
    """(b, t) bool: the tokens of the subject in the prompt."""
    position = torch.arange(batch.ids.shape[1], device=batch.ids.device)
    return (position >= batch.subjects[:, :1]) & (position < batch.subjects[:, 1:])


def answer_logits(loaded: LoadedModel, batch: TokenBatch, begun: Sequence[Begun] | None = None) -> Tensor:
    """Logits at the editing positions, row by row: (n, vocabulary) float32. begun: what stands before each sequence."""
    given = {"attention_mask": batch.mask, "use_cache": False} if begun is None else joined(begun, batch)
    with masked_positions(loaded.model, editing_mask(batch)):
        out = loaded.model(input_ids=batch.ids, **given)
    logits: Tensor = out.logits[0].float()
    return logits


def answer_tokens(batch: TokenBatch) -> Tensor:
    """The tokens to be produced at the editing positions, (n,)."""
    return batch.ids[:, 1:][editing_mask(batch)[:, :-1]]


def divergence(logits: Tensor, examples: Sequence[Example]) -> Tensor:
    """KL(base ‖ model) at each position of preserved rows, (n,): kept tokens one by one, the rest as one."""
    bases = [r.base for r in examples if r.base is not None]
    ids = torch.cat([torch.from_numpy(b.top_ids) for b in bases]).to(logits.device)
    logp = torch.cat([torch.from_numpy(b.top_logp) for b in bases]).to(logits.device)
    rest = torch.cat([torch.from_numpy(b.rest_logp) for b in bases]).to(logits.device)
    total = logits.logsumexp(-1)
    top = logits.gather(-1, ids) - total[:, None]
    others = logits.scatter(-1, ids, -torch.inf).logsumexp(-1) - total
    return (logp.exp() * (logp - top)).sum(-1) + rest.exp() * (rest - others)


def position_losses(logits: Tensor, batch: TokenBatch, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Loss of each position and its row: mean cross-entropy per fact, summed divergence per preserved row.

    Where a row is `ended`, the last of its tokens is any that ends a word.

    Returns (n,) losses, already divided so that their sum is the sum over rows, and (n,) row indices.
    """
    counts = torch.tensor([len(r.encoded.answer) for r in examples], device=logits.device)
    row = torch.repeat_interleave(torch.arange(len(examples), device=logits.device), counts)
    preserved = torch.tensor([r.base is not None for r in examples], device=logits.device)[row]
    loss = torch.zeros(len(row), device=logits.device)
    if not bool(preserved.all()):
        tokens = answer_tokens(batch)
        entropy = nn.functional.cross_entropy(logits[~preserved], tokens[~preserved], reduction="none")
        loss = loss.masked_scatter(~preserved, entropy / counts[row][~preserved])
    if batch.breaks is not None:
        last = counts.cumsum(0)[torch.tensor([r.encoded.ended for r in examples], device=counts.device)] - 1
        breaks = batch.breaks[: logits.shape[-1]]
        going_on = logits[last].logsumexp(-1) - logits[last][:, : len(breaks)][:, breaks].logsumexp(-1)
        loss = loss.index_put((last,), going_on / counts[row][last])
    if bool(preserved.any()):
        loss = loss.masked_scatter(preserved, divergence(logits[preserved], examples))
    return loss, row
