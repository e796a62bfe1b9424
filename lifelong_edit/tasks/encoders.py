"""What tasks with an encoder share: texts are read whole, special tokens around them, and nothing is written on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lifelong_edit.errors import BadInputError, UsageError
from lifelong_edit.models import (
    Encoded,
    Generation,
    LoadedModel,
    Outlined,
    Question,
    Tell,
    TokenBatch,
    Turn,
    by_length,
    special_front,
)
from lifelong_edit.tasks.contract import WIDTH, WINDOWS, Cutter, Example, Task
from lifelong_edit.tasks.losses import losses_of

PAIR = "[SEP]"
"""Stands in a prompt between the two texts of a pair, whatever the tokenizer writes there."""


def text_in(question: Question) -> str:
    """A question as a text. Raises UsageError for a turn: encoders have no chat template."""
    if isinstance(question, Turn):
        raise UsageError(
            "found a turn of a conversation for a model with an encoder, expected a text; leave out --chat"
        )
    return question


class ReadWhole:
    """What tasks of encoders have in common: an answer is of a length that is known, and chosen in one pass."""

    def margin(self, question: Question) -> int:
        """None: an answer ends by itself."""
        return 0

    def closed(self, model: LoadedModel, example: Encoded) -> Encoded:
        """As it is."""
        return example

    def bare(self, model: Outlined, example: Encoded) -> Encoded:
        """As it is."""
        return example

    def ended(self, model: LoadedModel, example: Encoded) -> Encoded:
        """As it is."""
        return example

    def read(self, model: LoadedModel, ids: Tensor, mask: Tensor | None = None) -> None:
        """A forward pass."""
        model.model(**read_arguments(model.model, ids, mask, model.tokenizer.sep_token_id))

    def cutter(self, model: LoadedModel) -> Cutter | None:
        """None: all of a text is read at once."""
        return None

    def loss(self, logits: Tensor, inputs: TokenBatch, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy per taught example, summed divergence per held one."""
        return losses_of(logits, examples)

    def counts(self, examples: Sequence[Encoded]) -> list[int]:
        """As many as an answer has tokens."""
        return [len(e.answer) for e in examples]

    def windows(self, model: LoadedModel, text: str, count: int = WINDOWS) -> Tensor:
        """Text cut into windows, special tokens around each."""
        return whole_windows(model, text, count)


def most_probable(
    task: Task, model: LoadedModel, asked: Sequence[Encoded], batch_size: int, tell: Tell | None
) -> list[Generation]:
    """The most probable choice at each place of an answer, whatever tokens `asked` has there."""

    def work(chosen: list[int]) -> list[Generation]:
        part = [asked[i] for i in chosen]
        with torch.inference_mode():
            best = task.logits(model, task.collate(model, part)).argmax(-1)
        return [Generation(tuple(ids.tolist())) for ids in best.split(task.counts(part))]

    return model.world.across(by_length([len(e.ids) for e in asked], batch_size), work, tell)


def read_arguments(model: Any, ids: Tensor, mask: Tensor | None, separator: int | None) -> dict[str, Tensor | None]:
    """What an encoder is given to read texts (b, t): of one that tells the texts of a pair apart which one it is."""
    given: dict[str, Tensor | None] = {"input_ids": ids, "attention_mask": mask}
    if (getattr(model.config, "type_vocab_size", 0) or 0) > 1:
        ends = ids.eq(-1 if separator is None else separator).long()
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
