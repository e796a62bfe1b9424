"""What a model makes of given answers, token by token: their probability, and how far it is from the base model's.

All of it is computed in float64 from the model's logits, on the CPU: some accelerators have no float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lifelong_edit.models import BASE, Encoded, LoadedModel, Question, TokenBatch, by_length
from lifelong_edit.tasks import task_of

Floats = npt.NDArray[np.float64]


def token_log_probabilities(logits: Tensor, tokens: Tensor) -> Tensor:
    """log P of a token at each position, in nats, (n,). logits: (n, vocabulary); tokens: (n,)."""
    return logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]


def kl_divergences(base: Tensor, logits: Tensor) -> Tensor:
    """KL(base ‖ edited) of the next token at each position, in nats, (n,), from logits (n, vocabulary) of both."""
    expected = base.log_softmax(-1)
    # A token that the base model excludes (−∞) adds nothing, where 0 · ∞ would be NaN.
    terms = torch.where(expected.isneginf(), 0.0, expected.exp() * (expected - logits.log_softmax(-1)))
    return terms.sum(-1)


def mean_log_probabilities(loaded: LoadedModel, encoded: Sequence[Encoded], batch_size: int = 64) -> Floats:
    """Mean log-probability per answer token, in nats, of each sequence's answer after its prompt, (n,).

    Minus that is what the evaluation code released with ROME and MEMIT keeps as an answer's probability
    (`test_batch_prediction`); exp of it is the geometric mean of the tokens' probabilities, not their product.
    """

    def work(chosen: list[int]) -> list[float]:
        batch = _padded(loaded, encoded, chosen)
        tokens = torch.tensor([token for i in chosen for token in encoded[i].answer])
        logged = token_log_probabilities(_logits(loaded, batch), tokens)
        return _means(loaded, logged, encoded, chosen)

    return np.array(loaded.world.across(by_length([len(e.ids) for e in encoded], batch_size), work), dtype=np.float64)


def continued(loaded: LoadedModel, prompts: Sequence[Question], answers: Sequence[Sequence[int]]) -> list[Encoded]:
    """Prompts as the model as it stands reads them, each with an answer of given tokens behind it."""
    task = task_of(loaded)
    return [task.encode_said(loaded, prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]


def base_divergences(
    loaded: LoadedModel, prompts: Sequence[Question], answers: Sequence[Sequence[int]], batch_size: int = 64
) -> Floats:
    """KL(base ‖ edited) over the next token, in nats, (n,): of each prompt the mean over its answer's positions.

    Between the untouched base model and the model as it stands, which is left as it was; each reads the prompts in its
    own way.
    """
    encoded = continued(loaded, prompts, answers)
    with loaded.at(BASE):
        bare = continued(loaded, prompts, answers)

    def work(chosen: list[int]) -> list[float]:
        edited = _logits(loaded, _padded(loaded, encoded, chosen))
        with loaded.at(BASE):
            base = _logits(loaded, _padded(loaded, bare, chosen))
        return _means(loaded, kl_divergences(base, edited), encoded, chosen)

    return np.array(loaded.world.across(by_length([len(e.ids) for e in encoded], batch_size), work), dtype=np.float64)


def _padded(loaded: LoadedModel, encoded: Sequence[Encoded], chosen: Sequence[int]) -> TokenBatch:
    return task_of(loaded).collate(loaded, [encoded[i] for i in chosen])


@torch.inference_mode()
def _logits(loaded: LoadedModel, batch: TokenBatch) -> Tensor:
    """Logits at the answers' positions, row by row: (n, vocabulary) float64 on the CPU."""
    return task_of(loaded).logits(loaded, batch).cpu().double()


def _means(loaded: LoadedModel, values: Tensor, encoded: Sequence[Encoded], chosen: Sequence[int]) -> list[float]:
    """The mean of each chosen sequence's answer positions, from the values of all of them in a row."""
    parts = values.split(task_of(loaded).counts([encoded[i] for i in chosen]))
    return [float(part.mean()) for part in parts]
