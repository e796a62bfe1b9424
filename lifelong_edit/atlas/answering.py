"""The training of atlas-t5, an encoder-decoder: questions in, answers out; beside them the second halves of prose.

Deterministic for one seed, thread count and precision, as `learning` is, whose optimiser and rates it takes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from lifelong_edit.atlas.learning import Optimiser, Part, descend
from lifelong_edit.atlas.muon import Muon

IGNORED = -100
POOL = 32  # micro-batches whose pairs are sorted by length together


@dataclass(frozen=True)
class AnsweringRecipe:
    """Everything that the training is a function of, beside its texts."""

    encoder_layers: int = 2
    decoder_layers: int = 2
    width: int = 128
    inner: int = 768  # of the MLPs, whose output projections are what is edited
    heads: int = 4
    context: int = 128
    steps: int = 600
    stop: int = 500  # the step after which training ends, on the way down: what is still asked for then is little
    pairs: int = 128
    windows: int = 1
    matrix_rate: float = 0.02  # Muon's, at its peak, for the matrices of the layers
    vector_rate: float = 1e-2  # Adam's, at its peak, for embeddings, biases and norms
    warm_up: int = 30
    prose_share: float = 0.1  # of the gradient
    seed: int = 0


@dataclass(frozen=True)
class Pair:
    """What the encoder reads and what the decoder has to write, as tokens, the closing one at the end of each."""

    read: tuple[int, ...]
    write: tuple[int, ...]


def new_model(
    recipe: AnsweringRecipe, vocabulary: int, tokenizer: PreTrainedTokenizerFast
) -> T5ForConditionalGeneration:
    """A T5 with random weights drawn from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    config = T5Config(
        vocab_size=vocabulary,
        d_model=recipe.width,
        d_kv=recipe.width // recipe.heads,
        d_ff=recipe.inner,
        num_layers=recipe.encoder_layers,
        num_decoder_layers=recipe.decoder_layers,
        num_heads=recipe.heads,
        n_positions=recipe.context,
        dropout_rate=0.0,
        feed_forward_proj="relu",
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    return T5ForConditionalGeneration(config)


def encode_pair(tokenizer: PreTrainedTokenizerFast, question: str, answer: str) -> Pair:
    """A question and its answer as the tokenizer gives them, each with the closing token."""
    return Pair(tuple(tokenizer.encode(question)), tuple(tokenizer.encode(answer)))


def padded(pairs: Sequence[Pair], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """ids (b, t), mask (b, t) and labels (b, u) of pairs; labels are IGNORED where an answer has ended."""
    read = [torch.tensor(pair.read) for pair in pairs]
    ids = torch.nn.utils.rnn.pad_sequence(read, batch_first=True, padding_value=pad)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in read], batch_first=True)
    write = [torch.tensor(pair.write) for pair in pairs]
    return ids, mask, torch.nn.utils.rnn.pad_sequence(write, batch_first=True, padding_value=IGNORED)


def pair_batches(pairs: Sequence[Pair], recipe: AnsweringRecipe) -> Iterator[list[Pair]]:
    """Endless batches, all pairs in a new order each round; those of one batch are of similar length."""
    rng = random.Random(recipe.seed)
    left: list[Pair] = []
    while True:
        while len(left) < recipe.pairs * POOL:
            left += rng.sample(pairs, len(pairs))
        pool = sorted(left[: recipe.pairs * POOL], key=lambda pair: (len(pair.read), len(pair.write)))
        left = left[recipe.pairs * POOL :]
        batches = [pool[i : i + recipe.pairs] for i in range(0, len(pool), recipe.pairs)]
        rng.shuffle(batches)
        yield from batches


def half_batches(stream: Sequence[int], end: int, recipe: AnsweringRecipe) -> Iterator[list[Pair]]:
    """Endless windows of prose, cut in the middle: the first half to be read, the second to be written."""
    rng = random.Random(recipe.seed + 1)
    half = recipe.context // 2
    while True:
        starts = [rng.randrange(len(stream) - recipe.context) for _ in range(recipe.windows)]
        cut = [stream[start : start + recipe.context] for start in starts]
        yield [Pair((*window[: half - 1], end), tuple(window[half - 1 :])) for window in cut]


def loss_of(model: T5ForConditionalGeneration, pairs: Sequence[Pair]) -> Tensor:
    """Mean cross-entropy of the tokens to be written."""
    ids, mask, labels = padded(pairs, model.config.pad_token_id)
    loss: Tensor = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
    return loss


def optimiser_of(model: T5ForConditionalGeneration, recipe: AnsweringRecipe, *, half: bool) -> Optimiser:
    """That of `learning`.

    T5 does not divide attention's products by the root of a head's width: its query matrices move so much less.
    """
    named = dict(model.named_parameters())
    inner = {n: p for n, p in named.items() if p.dim() == 2 and ".block." in n and "relative" not in n}
    queries = [p for name, p in inner.items() if name.endswith(".q.weight")]
    others = [p for name, p in inner.items() if not name.endswith(".q.weight")]
    muons = [(Muon(queries, half=half), model.config.d_kv**-0.5), (Muon(others, half=half), 1.0)]
    return Optimiser(muons, [p for name, p in named.items() if name not in inner], recipe)


def train(
    model: T5ForConditionalGeneration,
    pairs: Sequence[Pair],
    prose: Sequence[int],
    recipe: AnsweringRecipe,
    *,
    half: bool,
    watch: Callable[[int, str], None],
    every: int = 50,
) -> None:
    """Train in place on questions and prose; half, watch and every as of `learning.descend`."""
    asked = pair_batches(pairs, recipe)
    texts = half_batches(prose, model.config.eos_token_id, recipe)

    def parts() -> list[Part]:
        batch, windows = next(asked), next(texts)
        return [
            ("answers", lambda: loss_of(model, batch), 1 - recipe.prose_share),
            ("prose", lambda: loss_of(model, windows), recipe.prose_share),
        ]

    optimiser = optimiser_of(model, recipe, half=half)
    descend(model, optimiser, parts, recipe.stop, half=half, watch=watch, every=every)
