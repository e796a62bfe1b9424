"""Texts on their way through a model, in one pass or in several with a cache: what a hook has to know of each."""

from __future__ import annotations

from typing import Any

import torch


class Passes:
    """Where hooks ask which positions of the pass at hand are padding, and whether texts begin with it.

    mask: (b, t) bool, false at padding. begins: false where a cache holds what came before.
    """

    def __init__(self) -> None:
        self.mask = torch.zeros(0, 0, dtype=torch.bool)
        self.begins = True

    def begin(self, model: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        """A pass begins: to be registered as the model's forward pre-hook, with keyword arguments.

        Its mask is longer than its tokens where a cache holds what came before them.
        """
        ids, mask, cache = options.get("input_ids"), options.get("attention_mask"), options.get("past_key_values")
        if ids is None:  # a pass of a decoder alone, whose encoder has read the text before: no hook there sees it
            return
        past = 0 if cache is None else cache.get_seq_length()
        self.mask = torch.ones_like(ids).bool() if mask is None else mask[:, -ids.shape[1] :].bool()
        self.begins = past == 0 if mask is None else mask.shape[1] == ids.shape[1]
