"""Tokens that end a word: an answer is over where one of them follows, whichever it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lifelong_edit.models import Encoded, LoadedModel
from lifelong_edit.tasks.causal.verdicts import in_word

_KNOWN: WeakKeyDictionary[Any, Tensor] = WeakKeyDictionary()
_PART = "\ufffd"
"""What a token decodes to that is part of a character alone."""


def word_breaks(loaded: LoadedModel) -> Tensor:
    """(tokens,) bool on the model's device: the tokens that do not go on with a word before them."""
    tokenizer = loaded.tokenizer
    if tokenizer not in _KNOWN:
        front: list[int] = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
        plain = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        before: str = tokenizer.decode(front, **plain)
        texts: list[str] = tokenizer.batch_decode([[*front, token] for token in range(len(tokenizer))], **plain)
        rows = max(len(tokenizer), getattr(tokenizer, "embedding_rows", 0))
        breaks = torch.ones(rows, dtype=torch.bool)
        for token, text in enumerate(texts):
            first = text.removeprefix(before)[:1]
            breaks[token] = first != _PART and not (first and in_word(first))
        _KNOWN[tokenizer] = breaks
    return _KNOWN[tokenizer].to(loaded.device)


def ended(loaded: LoadedModel, example: Encoded) -> Encoded:
    """The example with one more token behind it, any that ends its last word; as it is where nothing could go on."""
    said: str = loaded.tokenizer.decode(list(example.answer), clean_up_tokenization_spaces=False)
    if not said or not in_word(said[-1]) or len(example.ids) >= loaded.context:
        return example
    return replace(example, ids=(*example.ids, loaded.pad_id), ended=True)
