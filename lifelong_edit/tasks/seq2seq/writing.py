"""Greedy generation by an encoder-decoder: questions are read once, answers written token by token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers.modeling_outputs import BaseModelOutput

from lifelong_edit.models import Encoded, Generation, LoadedModel, Tell, by_length, end_ids, last_position
from lifelong_edit.tasks.seq2seq.pairs import opening_of, pairs


def write(
    model: LoadedModel,
    questions: Sequence[Sequence[int]],
    limits: Sequence[int],
    batch_size: int = 64,
    tell: Tell | None = None,
) -> list[Generation]:
    """Answers to questions that are tokens, in their order; limits: tokens at most. tell: how many are written."""
    found: dict[int, Generation] = {}
    for chosen in by_length([len(ids) for ids in questions], batch_size):
        room = model.context - len(opening_of(model))
        said = _written(model, [questions[i] for i in chosen], [min(limits[i], room) for i in chosen])
        found.update(zip(chosen, said, strict=True))
        if tell is not None:
            tell(len(found))
    return [found[i] for i in range(len(questions))]


@torch.inference_mode()
def _written(model: LoadedModel, questions: list[Sequence[int]], limits: list[int]) -> list[Generation]:
    batch, ends = pairs(model, [Encoded.of(ids) for ids in questions]), end_ids(model)
    produced: list[list[int]] = [[] for _ in questions]
    stopped: list[int | None] = [None] * len(questions)
    open_rows = {row for row, limit in enumerate(limits) if limit > 0}
    given: dict[str, object] = {"input_ids": batch.ids}
    step, cache = batch.written, None
    with last_position(model.model):
        while open_rows:
            out = model.model(
                **given,
                attention_mask=batch.mask,
                decoder_input_ids=step,
                past_key_values=cache,
                use_cache=True,
            )
            best = out.logits[:, -1].argmax(-1)
            for row, token in enumerate(best.tolist()):
                if row in open_rows:
                    if token in ends:
                        stopped[row] = token
                    else:
                        produced[row].append(token)
                    if token in ends or len(produced[row]) == limits[row]:
                        open_rows.discard(row)
            given = {"encoder_outputs": BaseModelOutput(last_hidden_state=out.encoder_last_hidden_state)}
            step, cache = best[:, None], out.past_key_values
    return [Generation(tuple(ids), end) for ids, end in zip(produced, stopped, strict=True)]
