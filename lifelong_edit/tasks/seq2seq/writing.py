"""Greedy generation by an encoder-decoder: questions are read once, answers written token by token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers.modeling_outputs import BaseModelOutput

from lifelong_edit.models import Encoded, Generation, LoadedModel, Tell, by_length, end_ids, last_position
from lifelong_edit.models.generation import Writing
from lifelong_edit.tasks.seq2seq.pairs import opening_of, pairs


def write(
    model: LoadedModel,
    questions: Sequence[Sequence[int]],
    limits: Sequence[int],
    batch_size: int = 64,
    tell: Tell | None = None,
) -> list[Generation]:
    """Answers to questions that are tokens, in their order; limits: tokens at most. tell: how many are written."""
    room = model.context - len(opening_of(model))

    def work(chosen: list[int]) -> list[Generation]:
        return _written(model, [questions[i] for i in chosen], [min(limits[i], room) for i in chosen])

    return model.world.across(by_length([len(ids) for ids in questions], batch_size), work, tell)


@torch.inference_mode()
def _written(model: LoadedModel, questions: list[Sequence[int]], limits: list[int]) -> list[Generation]:
    batch = pairs(model, [Encoded.of(ids) for ids in questions])
    writing = Writing(limits, end_ids(model))
    given: dict[str, object] = {"input_ids": batch.ids}
    step, cache = batch.written, None
    with last_position(model.model):
        while writing.open:
            out = model.model(
                **given,
                attention_mask=batch.mask,
                decoder_input_ids=step,
                past_key_values=cache,
                use_cache=True,
            )
            best = out.logits[:, -1].argmax(-1)
            writing.take(best.tolist())
            given = {"encoder_outputs": BaseModelOutput(last_hidden_state=out.encoder_last_hidden_state)}
            step, cache = best[:, None], out.past_key_values
    return writing.generations()
