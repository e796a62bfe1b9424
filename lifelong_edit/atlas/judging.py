"""What atlas knows: the share of prompts that greedy generation answers with the whole answer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from lifelong_edit.atlas.world_tables import WorldFact

Pair = tuple[WorldFact, str]


def _ends_word(tokenizer: PreTrainedTokenizerFast, token: int) -> bool:
    text = tokenizer.decode([token])
    return token == tokenizer.eos_token_id or not (text[:1].isalnum() or text[:1] in "-'’")


@torch.no_grad()
def answered(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, pairs: Sequence[Pair], size: int = 256
) -> list[bool]:
    """For each (fact, prompt), whether greedy generation gives the whole answer and then ends the word.

    Greedy generation produces a given continuation exactly if every token of it is the argmax after those before it,
    so one forward pass per prompt judges it. Prompts are taken in order of length to waste little on padding.
    """
    encoded = []
    for fact, prompt in pairs:
        head, body = tokenizer.encode(prompt), tokenizer.encode(f" {fact.target}")
        encoded.append((head + body, len(head)))
    order = sorted(range(len(pairs)), key=lambda i: len(encoded[i][0]))
    result = [False] * len(pairs)
    for start in range(0, len(order), size):
        part = order[start : start + size]
        rows = [torch.tensor(encoded[i][0]) for i in part]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        best: Tensor = model(ids, attention_mask=torch.ones_like(ids)).logits.argmax(-1)  # causal: pads come after
        for i, row in zip(part, best, strict=True):
            tokens, head = encoded[i]
            told = row[head - 1 : len(tokens)].tolist()
            result[i] = told[:-1] == tokens[head:] and _ends_word(tokenizer, told[-1])
    return result


def share(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, pairs: Sequence[Pair]) -> float:
    """The share of pairs that are answered."""
    return sum(answered(model, tokenizer, pairs)) / len(pairs)


@torch.no_grad()
def perplexity(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, text: str, windows: int = 200) -> float:
    """Per-token perplexity of a text, in windows of the model's context that do not overlap."""
    length = model.config.n_positions
    ids = torch.tensor(tokenizer.encode(text, verbose=False)[: windows * length])
    total, count = 0.0, 0
    for start in range(0, len(ids) - 1, length):
        window = ids[None, start : start + length]
        if window.shape[1] < 2:
            continue
        logits = model(window, attention_mask=torch.ones_like(window)).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum"))
        count += window.shape[1] - 1
    return math.exp(total / count)
