"""The training of atlas: statements packed into short rows, prose in full windows, one seeded loop.

Deterministic for one seed, thread count and precision: every order is drawn from the seed, and nothing is sampled
while training (no dropout).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from lifelong_edit.atlas.muon import Muon

OPEN_ROWS = 64  # rows that a statement is offered to, in order, before a new one is begun


@dataclass(frozen=True)
class Recipe:
    """Everything that the training is a function of, beside its texts."""

    layers: int = 5
    width: int = 256
    heads: int = 4
    context: int = 128
    steps: int = 1250
    rows: int = 36
    row_length: int = 36
    windows: int = 2
    matrix_rate: float = 0.02  # Muon's, at its peak, for the matrices of the layers
    vector_rate: float = 5e-3  # Adam's, at its peak, for embeddings, biases and norms
    warm_up: int = 30
    prose_share: float = 0.2  # of the gradient
    seed: int = 0


@dataclass(frozen=True)
class Statement:
    """A prompt, its answer and a full stop as tokens; the answer is ids[answer:stop]."""

    ids: tuple[int, ...]
    answer: int
    stop: int


def encode_statement(tokenizer: PreTrainedTokenizerFast, prompt: str, target: str) -> Statement:
    """The statement ``prompt target.`` followed by the end token."""
    head = tokenizer.encode(prompt)
    body = tokenizer.encode(f" {target}")
    tail = tokenizer.encode(".")
    return Statement((*head, *body, *tail, tokenizer.eos_token_id), len(head), len(head) + len(body))


def new_model(recipe: Recipe, vocabulary: int, end: int) -> GPT2LMHeadModel:
    """A GPT-2-architecture model with random weights drawn from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=recipe.context,
        n_embd=recipe.width,
        n_layer=recipe.layers,
        n_head=recipe.heads,
        activation_function="gelu_pytorch_tanh",  # GPT-2's own function as one kernel
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )
    return GPT2LMHeadModel(config)


def pack(statements: Sequence[Statement], order: Sequence[int], length: int) -> list[list[int]]:
    """Rows of statement numbers whose tokens fit ``length``: first fit among the last few open rows."""
    longest = max(len(statement.ids) for statement in statements)
    if longest > length:
        raise ValueError(f"a statement has {longest} tokens, but a row takes {length}: raise row_length")
    rows: list[list[int]] = []
    used: list[int] = []
    for number in order:
        size = len(statements[number].ids)
        first = max(0, len(rows) - OPEN_ROWS)
        place = next((i for i in range(first, len(rows)) if used[i] + size <= length), None)
        if place is None:
            rows.append([])
            used.append(0)
            place = len(rows) - 1
        rows[place].append(number)
        used[place] += size
    return rows


def _row_tensors(statements: Sequence[Statement], rows: list[list[int]], recipe: Recipe) -> tuple[Tensor, Tensor]:
    ids = torch.zeros(len(rows), recipe.row_length, dtype=torch.long)
    due = torch.zeros(len(rows), recipe.row_length, dtype=torch.bool)
    for r, row in enumerate(rows):
        at = 0
        for number in row:
            s = statements[number]
            ids[r, at : at + len(s.ids)] = torch.tensor(s.ids)
            due[r, at + s.answer : at + len(s.ids)] = True
            at += len(s.ids)
    return ids, due


def statement_batches(statements: Sequence[Statement], recipe: Recipe) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (ids, due) of shape (rows, row_length): all statements in a new order each round.

    Due are the tokens that training asks for: answers, full stops and ends. Nothing can foretell a prompt.
    """
    rng = random.Random(recipe.seed)
    order = list(range(len(statements)))
    left: list[list[int]] = []
    while True:
        while len(left) < recipe.rows:
            rng.shuffle(order)
            fresh = pack(statements, order, recipe.row_length)
            rng.shuffle(fresh)
            left += fresh
        yield _row_tensors(statements, left[: recipe.rows], recipe)
        left = left[recipe.rows :]


def prose_batches(stream: Sequence[int], recipe: Recipe) -> Iterator[Tensor]:
    """Endless windows (windows, context) of the prose, cut anew with another offset in each round."""
    rng = random.Random(recipe.seed + 1)
    tokens = torch.tensor(stream)
    left: list[Tensor] = []
    while True:
        while len(left) < recipe.windows:
            shifted = tokens[rng.randrange(recipe.context) :]
            whole = len(shifted) // recipe.context
            windows = list(shifted[: whole * recipe.context].view(whole, recipe.context))
            rng.shuffle(windows)
            left += windows
        yield torch.stack(left[: recipe.windows])
        left = left[recipe.windows :]


def loss_of(model: GPT2LMHeadModel, ids: Tensor, due: Tensor) -> Tensor:
    """Mean cross-entropy of the tokens that are due, each foretold from those before it in its row."""
    hidden = model.transformer(ids).last_hidden_state[:, :-1]
    asked = due[:, 1:]
    logits = model.lm_head(hidden[asked])
    return torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:][asked])


def slope(step: int, steps: int, warm_up: int) -> float:
    """The learning rates at a step, relative to their peak: linear warm-up, a plateau, linear descent to zero."""
    descent = (steps - step) / (steps * 0.75)
    return min((step + 1) / warm_up, descent, 1.0)


class Rates(Protocol):
    """Of a recipe what its optimiser goes by."""

    @property
    def steps(self) -> int:
        """Over how many steps the rates fall to zero."""

    @property
    def warm_up(self) -> int:
        """Over how many they rise."""

    @property
    def matrix_rate(self) -> float:
        """Muon's, at its peak."""

    @property
    def vector_rate(self) -> float:
        """Adam's, at its peak."""


class Optimiser:
    """Muon for the matrices of the layers, Adam for everything else.

    muons: of matrices, each with the share of the rate that they move by. outer: what Adam moves.
    """

    def __init__(self, muons: Sequence[tuple[Muon, float]], outer: Sequence[Tensor], rates: Rates) -> None:
        self._muons, self._rates = muons, rates
        self._adam = torch.optim.AdamW(outer, betas=(0.9, 0.98), weight_decay=0.0, fused=True)

    def step(self, step: int) -> None:
        """Apply and forget the gradients at the rates of this step."""
        now = slope(step, self._rates.steps, self._rates.warm_up)
        self._adam.param_groups[0]["lr"] = self._rates.vector_rate * now
        self._adam.step()
        self._adam.zero_grad()
        for muon, share in self._muons:
            muon.step(self._rates.matrix_rate * now * share)


Part = tuple[str, Callable[[], Tensor], float]
"""A part of a step: what it is called, its loss, and its share of the gradient."""


def descend(
    model: nn.Module,
    optimiser: Optimiser,
    parts: Callable[[], Sequence[Part]],
    steps: int,
    *,
    half: bool,
    watch: Callable[[int, str], None],
    every: int,
) -> None:
    """Train in place, with bfloat16 products if ``half``; ``watch`` gets step and mean losses every ``every`` steps."""
    model.train()
    sums: dict[str, float] = {}
    begun = time.perf_counter()
    for step in range(steps):
        for name, loss_of_part, share in parts():
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
                loss = loss_of_part()
            (loss * share).backward()
            sums[name] = sums.get(name, 0.0) + loss.item()
        optimiser.step(step)
        if (step + 1) % every == 0:
            told = "  ".join(f"{name} {total / every:.4f}" for name, total in sums.items())
            watch(step + 1, f"{told}  {time.perf_counter() - begun:.0f} s")
            sums.clear()
    model.eval()


def train(
    model: GPT2LMHeadModel,
    statements: Sequence[Statement],
    prose: Sequence[int],
    recipe: Recipe,
    *,
    half: bool,
    watch: Callable[[int, str], None],
    every: int = 100,
) -> None:
    """Train in place on statements and prose; half, watch and every as of `descend`."""
    named = dict(model.named_parameters())
    inner = {name: p for name, p in named.items() if p.dim() == 2 and ".h." in name}
    outer = [p for name, p in named.items() if name not in inner]
    optimiser = Optimiser([(Muon(list(inner.values()), half=half), 1.0)], outer, recipe)
    facts, texts = statement_batches(statements, recipe), prose_batches(prose, recipe)

    def parts() -> list[Part]:
        (ids, due), windows = next(facts), next(texts)
        everywhere = torch.ones_like(windows).bool()
        return [
            ("statements", lambda: loss_of(model, ids, due), 1 - recipe.prose_share),
            ("prose", lambda: loss_of(model, windows, everywhere), recipe.prose_share),
        ]

    descend(model, optimiser, parts, recipe.steps, half=half, watch=watch, every=every)
