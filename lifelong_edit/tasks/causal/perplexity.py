"""Perplexity on a text: the alarm that says whether a model still models language at all.

Why it is one: Yang et al., "The Butterfly Effect of Model Editing", arXiv 2402.09656.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lifelong_edit.errors import BadInputError
from lifelong_edit.models import LoadedModel, special_front
from lifelong_edit.tasks.contract import WIDTH, WINDOWS


def text_windows(loaded: LoadedModel, text: str, windows: int = WINDOWS, width: int | None = None) -> Tensor:
    """The first tokens of a text, cut into windows: (n, width) long, n ≤ windows, on the model's device.

    width: tokens per window, by default 128 or the model's context where that is shorter; special tokens
    that the tokenizer puts in front stand in front of each window. A text shorter than one window is one,
    otherwise what is left over is dropped, as is white space at the beginning.
    Raises BadInputError for a text of fewer than two tokens.
    """
    front = special_front(loaded.tokenizer)
    body = min(width or WIDTH, loaded.context) - len(front)
    ids = _first_tokens(loaded, text.lstrip(), windows * body)
    if len(front) + len(ids) < 2:
        raise BadInputError(f"a text of {len(text)} characters is too short to measure perplexity on")
    count = max(1, len(ids) // body)
    parts = [front + ids[i * body : (i + 1) * body] for i in range(min(count, windows))]
    return torch.tensor(parts, device=loaded.device)


def _first_tokens(loaded: LoadedModel, text: str, count: int) -> list[int]:
    """The first `count` tokens, without reading a large file to its end."""
    length = count * 8
    while True:
        ids: list[int] = loaded.tokenizer(text[:length], add_special_tokens=False, verbose=False)["input_ids"]
        # A cut can change the last few tokens before it, hence the margin.
        if len(ids) >= count + WIDTH or length >= len(text):
            return ids[:count]
        length *= 2


@torch.inference_mode()
def perplexity_of(loaded: LoadedModel, windows: Tensor, batch_size: int = 8) -> float:
    """exp of the mean negative log-likelihood per predicted token, over windows (n, width).

    The first token of each window is given and not predicted. Infinite or NaN where the model has collapsed.
    """

    def loss(part: Tensor) -> float:
        logits = loaded.model(input_ids=part, use_cache=False).logits[:, :-1].float()
        found = torch.nn.functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum")
        return float(found.cpu().double())

    # in the order of the windows: a sum of floats depends on it
    total = sum(loaded.world.each(torch.split(windows, batch_size), loss))
    mean = total / (windows.shape[0] * (windows.shape[1] - 1))
    return math.exp(mean) if mean < 700 else mean * math.inf


def perplexity(loaded: LoadedModel, text: str, windows: int = WINDOWS, width: int | None = None) -> float:
    """Perplexity of a model on the first windows of a text; see `text_windows` and `perplexity_of`."""
    return perplexity_of(loaded, text_windows(loaded, text, windows, width))
