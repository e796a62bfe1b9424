"""What attention keeps of texts' first tokens: a pass over many ends of the same texts need not read them again.

In a causal model nothing that stands later changes it. A search that asks the same prompts for tens of rounds, with
edits that act from the subject on, reads what stands before the subject once.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import DynamicCache

from lifelong_edit.models import BASE, Encoded, LoadedModel, TokenBatch, by_length, last_position, pad

SAME = 1e-3
"""How far logits may be from those of a whole pass, relative to their range, for a model to be one that can be cut."""


@dataclass(frozen=True)
class Begun:
    """The first tokens of one text: by layer their attention keys and values, (heads, t, d) each."""

    count: int
    layers: tuple[tuple[Tensor, Tensor], ...]


def begin(loaded: LoadedModel, texts: Sequence[Sequence[int]], micro_batch: int) -> list[Begun]:
    """What attention keeps of texts as the model stands; of one without tokens nothing."""
    found = [Begun(0, ())] * len(texts)
    long = [i for i, ids in enumerate(texts) if ids]
    for chosen in by_length([len(texts[i]) for i in long], micro_batch):
        numbers = [long[j] for j in chosen]
        batch = pad([Encoded.of(texts[i]) for i in numbers], loaded.pad_id, loaded.device)
        cache = DynamicCache()
        with torch.no_grad(), last_position(loaded.model):
            loaded.model(input_ids=batch.ids, attention_mask=batch.mask, past_key_values=cache, use_cache=True)
        for at, i in enumerate(numbers):
            kept = [(layer.keys[at], layer.values[at]) for layer in cache.layers]
            found[i] = Begun(
                len(texts[i]), tuple((k[:, : len(texts[i])].clone(), v[:, : len(texts[i])].clone()) for k, v in kept)
            )
    return found


def joined(begun: Sequence[Begun], inputs: TokenBatch) -> dict[str, object]:
    """The arguments of a forward pass over the ends of texts, `inputs`, behind what was kept of each of them.

    What was kept stands at the right of the cache, so that it is next to what follows.
    """
    counts = torch.tensor([found.count for found in begun], device=inputs.ids.device)
    width = int(counts.max())
    positions = counts[:, None] + torch.arange(inputs.ids.shape[1], device=counts.device)
    if not width:
        return {"attention_mask": inputs.mask, "position_ids": positions, "use_cache": False}
    before = torch.arange(width, device=counts.device) >= width - counts[:, None]
    cache, some = DynamicCache(), next(found for found in begun if found.count)
    for number, pair in enumerate(some.layers):
        stacked = [kept.new_zeros(len(begun), len(kept), width, kept.shape[-1]) for kept in pair]
        for at, found in enumerate(begun):
            if found.count:
                for whole, kept in zip(stacked, found.layers[number], strict=True):
                    whole[at, :, width - found.count :] = kept
        cache.update(*stacked, number)
    mask = torch.cat([before.to(inputs.mask), inputs.mask], 1)
    return {"attention_mask": mask, "position_ids": positions, "past_key_values": cache, "use_cache": True}


def ends_of(inputs: Sequence[Encoded], begun: Sequence[Begun]) -> list[Encoded]:
    """What follows in texts the tokens that were kept of each."""
    found = []
    for e, cut in zip(inputs, (kept.count for kept in begun), strict=True):
        start, end = e.subject
        found.append(replace(e, ids=e.ids[cut:], answer_start=e.answer_start - cut, subject=(start - cut, end - cut)))
    return found


def can_be_cut(loaded: LoadedModel) -> bool:
    """Whether a model says the same of the end of a text behind what it kept of its beginning: measured on two texts.

    Not where attention keeps something else than keys and values, or positions cannot be given.
    """
    if "position_ids" not in inspect.signature(loaded.model.forward).parameters:
        return False
    rows = max(2, min(97, loaded.model.get_input_embeddings().weight.shape[0] - 1))
    texts = [tuple((7 * i + j) % rows for i in range(count)) for j, count in enumerate((9, 6))]
    whole = pad([Encoded.of(ids) for ids in texts], loaded.pad_id, loaded.device)
    ends = pad([Encoded.of(ids[cut:]) for ids, cut in zip(texts, (5, 3), strict=True)], loaded.pad_id, loaded.device)
    with torch.no_grad(), loaded.at(BASE):
        wanted = loaded.model(input_ids=whole.ids, attention_mask=whole.mask, use_cache=False).logits.float()
        try:
            begun = begin(loaded, [ids[:cut] for ids, cut in zip(texts, (5, 3), strict=True)], 2)
            found = loaded.model(input_ids=ends.ids, **joined(begun, ends)).logits.float()
        except Exception:  # caches of other kinds say in many ways that they are not what was given
            return False
    pairs = [(wanted[0, 5:9], found[0, :4]), (wanted[1, 3:6], found[1, :3])]
    bound = SAME * float(wanted.std())
    return all(float((one - other).abs().max()) <= bound for one, other in pairs)
