"""What an encoder-decoder is given: a sequence to read and, beside it, one to write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lifelong_edit.errors import LifelongEditError
from lifelong_edit.models import Encoded, LoadedModel, TokenBatch, pad, special_front
from lifelong_edit.models.families import Positions
from lifelong_edit.tasks.encoders import special_back


@dataclass(kw_only=True)
class PairBatch(TokenBatch):
    """Questions to be read, padded on the right, and what is written beside each.

    ids, mask, subjects are the questions'. written, write_mask: (b, u), what the decoder reads: its opening tokens and
    the answer without its last token. due: (b, u) bool, where an answer token has to be made. made: (n,) long, those
    tokens, question by question. opening: how many tokens stand before each answer.
    """

    written: Tensor
    write_mask: Tensor
    due: Tensor
    made: Tensor
    opening: int

    def tokens(self, positions: Positions) -> Tensor:
        """(b, t) or (b, u) bool: all that an encoder's module reads, or a decoder's."""
        return self.write_mask.bool() if positions == "answer" else self.mask.bool()


def opening_of(model: LoadedModel) -> list[int]:
    """The tokens that a decoder begins with, before any of its own.

    T5's padding token; BART's `</s>` and `<s>`: the model's start token, and what its tokenizer puts in front of texts.
    Raises LifelongEditError for a model whose configuration names no start token.
    """
    for config in (model.model.generation_config, model.model.config):
        start: int | None = getattr(config, "decoder_start_token_id", None)
        if start is not None:
            return [int(start), *special_front(model.tokenizer)]
    raise LifelongEditError(
        f"the configuration of {model.source!r} has no decoder_start_token_id, expected the token with which its "
        "answers begin; set it in config.json (T5: pad_token_id, BART: eos_token_id)"
    )


def pairs(model: LoadedModel, examples: Sequence[Encoded]) -> PairBatch:
    """Questions with their answers as one input; one without an answer has its opening alone."""
    read = pad([Encoded.of(e.prompt, (), e.subject) for e in examples], model.pad_id, model.device)
    opening = opening_of(model)
    written = pad([Encoded.of((*opening, *e.answer[:-1])) for e in examples], model.pad_id, model.device)
    first = len(opening) - 1
    column = torch.arange(written.ids.shape[1], device=model.device)
    counts = torch.tensor([len(e.answer) for e in examples], device=model.device)
    due = (column >= first) & (column < first + counts[:, None])
    made = torch.tensor([token for e in examples for token in e.answer], dtype=torch.long, device=model.device)
    return PairBatch(
        **vars(read), written=written.ids, write_mask=written.mask, due=due, made=made, opening=len(opening)
    )


def halves(model: LoadedModel, texts: Tensor, mask: Tensor | None = None) -> PairBatch:
    """Texts (b, t) cut in the middle: the first half is read, as a question is, and the second written."""
    lengths = [texts.shape[1]] * len(texts) if mask is None else mask.sum(1).tolist()
    back = special_back(model.tokenizer)
    cut = [(row[: n // 2], row[n // 2 : n]) for row, n in zip(texts.tolist(), lengths, strict=True)]
    return pairs(model, [Encoded.of((*first, *back), second) for first, second in cut])
