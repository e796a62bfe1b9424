"""What tasks with an encoder share: texts are read whole, special tokens around them, and nothing is written on."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lifelong_edit.errors import BadInputError, UsageError
from lifelong_edit.models import LoadedModel, Question, Turn, special_front
from lifelong_edit.tasks.contract import WIDTH

PAIR = "[SEP]"
"""Stands in a prompt between the two texts of a pair, whatever the tokenizer writes there."""


def text_in(question: Question) -> str:
    """A question as a text. Raises UsageError for a turn: encoders have no chat template."""
    if isinstance(question, Turn):
        raise UsageError(
            "found a turn of a conversation for a model with an encoder, expected a text; leave out --chat"
        )
    return question


def read_arguments(model: Any, ids: Tensor, mask: Tensor | None, separator: int | None) -> dict[str, Tensor | None]:
    """What an encoder is given to read texts (b, t): of one that tells the texts of a pair apart which one it is."""
    given: dict[str, Tensor | None] = {"input_ids": ids, "attention_mask": mask}
    if (getattr(model.config, "type_vocab_size", 0) or 0) > 1:
        ends = (ids == separator).long()
        second = ((ends.cumsum(1) - ends) > 0).long()
        given["token_type_ids"] = second if mask is None else second * mask
    return given


def whole_windows(loaded: LoadedModel, text: str, count: int) -> Tensor:
    """The beginning of a text cut into windows with special tokens around each: (n, t) long, n ≤ count.

    t is WIDTH, the model's context where that is less, or all of a shorter text. Raises BadInputError for a text
    without a token.
    """
    tokenizer = loaded.tokenizer
    front, back = special_front(tokenizer), special_back(tokenizer)
    body = min(WIDTH, loaded.context) - len(front) - len(back)
    ids: list[int] = tokenizer(text.strip()[: count * WIDTH * 12], add_special_tokens=False, verbose=False)["input_ids"]
    if not ids:
        raise BadInputError(f"a text of {len(text)} characters is too short to measure anything on")
    number = min(count, max(1, len(ids) // body))
    parts = [[*front, *ids[i * body : (i + 1) * body], *back] for i in range(number)]
    return torch.tensor(parts, device=loaded.device)


def special_back(tokenizer: Any) -> list[int]:
    """The special tokens that the tokenizer puts behind any text."""
    plain: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    full: list[int] = tokenizer("a")["input_ids"]
    return full[len(special_front(tokenizer)) + len(plain) :]


def exponential(mean: float) -> float:
    """exp of a mean loss; infinite or NaN where the model has collapsed."""
    return math.exp(mean) if mean < 700 else mean * math.inf


def split_pair(text: str, tokenizer: Any) -> tuple[str, str | None]:
    """The text, and the second one of a pair: between the two stands `PAIR` or the tokenizer's own mark."""
    for mark in (PAIR, tokenizer.sep_token):
        first, found, second = text.partition(mark) if mark else (text, "", "")
        if found:
            return first.strip(), second.strip()
    return text, None
