"""What an answer costs, token by token, and how far it is from the base model's: the same for every kind of model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lifelong_edit.models import TokenBatch
from lifelong_edit.tasks.contract import Example


def subject_mask(batch: TokenBatch) -> Tensor:
    """(b, t) bool: the tokens of the subject in the prompt."""
    position = torch.arange(batch.ids.shape[1], device=batch.ids.device)
    return (position >= batch.subjects[:, :1]) & (position < batch.subjects[:, 1:])


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


def losses_of(logits: Tensor, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Loss of each answer token and its row: mean cross-entropy per fact, summed divergence per preserved row.

    logits: (n, choices), row by row. Returns (n,) losses, already divided so that their sum is the sum over rows, and
    (n,) row indices.
    """
    counts = torch.tensor([len(r.encoded.answer) for r in examples], device=logits.device)
    row = torch.repeat_interleave(torch.arange(len(examples), device=logits.device), counts)
    preserved = torch.tensor([r.base is not None for r in examples], device=logits.device)[row]
    loss = torch.zeros(len(row), device=logits.device)
    if not bool(preserved.all()):
        tokens = torch.tensor([token for r in examples for token in r.encoded.answer], device=logits.device)
        entropy = nn.functional.cross_entropy(logits[~preserved], tokens[~preserved], reduction="none")
        loss = loss.masked_scatter(~preserved, entropy / counts[row][~preserved])
    if bool(preserved.any()):
        loss = loss.masked_scatter(preserved, divergence(logits[preserved], examples))
    return loss, row
