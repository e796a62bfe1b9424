"""Fine-tuning with replay, the rival of editing: Adam on the same matrices, for as many processor seconds.

Each step's loss is the cross-entropy of new facts and of a sample of earlier ones, in the rows that an edit has too,
and KL(base ‖ model) on the same preserved prompts. The rate warms up and falls to zero over the budget. The defaults
were chosen on `facts_train.jsonl` (`python -m benchmarks.bench_lifelong --facts train` tries others).
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

import msgspec
import torch
from torch import Tensor

from lifelong_edit.bench import State
from lifelong_edit.editors.ridge.editor import RidgeEditor
from lifelong_edit.errors import ModelMismatchError
from lifelong_edit.facts import Fact
from lifelong_edit.models import LoadedModel, by_length, pad
from lifelong_edit.tasks.causal.scoring import answer_logits, position_losses
from lifelong_edit.tracing.rows import Row, fact_rows, subjects_of

T = TypeVar("T")


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How it is fine-tuned."""

    rate: float = 4e-3
    """Adam's, at its height."""
    warmup: float = 0.05
    """Share of the budget until the rate is at its height; from there it falls to zero along a cosine."""
    rows: int = 48
    """Rows of facts per step."""
    replayed: float = 0.5
    """Share of them that are of earlier facts, where there are any."""
    preserved: int = 48
    """Preserved prompts per step."""
    preserved_weight: float = 10.0
    """Weight of their mean loss against the mean loss of the facts."""
    decay: float = 0.0
    """How fast weights return to the base model's: share of ΔW per step, in units of the rate."""
    memory: float = 0.99
    """Adam's β₂: runs are a few dozen to a few thousand steps long."""
    micro_batch: int = 24
    """Rows per forward and backward pass: sequences of like length, few enough to stay near the processor."""


class Deck(Generic[T]):
    """Items dealt in shuffled order, again and again: every one is seen once before any is seen twice."""

    def __init__(self, items: Sequence[T], generator: random.Random) -> None:
        self._items, self._generator = list(items), generator
        self._left: list[T] = []

    def deal(self, count: int) -> list[T]:
        """The next `count` items; fewer where the deck has fewer."""
        dealt: list[T] = []
        while self._items and len(dealt) < min(count, len(self._items)):
            if not self._left:
                self._left = self._generator.sample(self._items, len(self._items))
            dealt.append(self._left.pop())
        return dealt


class FineTuner:
    """Fine-tunes one model along a stream, on the rows of an editor. Each fact's rows are encoded once."""

    def __init__(self, editor: RidgeEditor, recipe: Recipe, seed: int = 0) -> None:
        self._bench, self._phrasings, self.recipe = editor.bench, editor.phrasings, recipe
        self._generator = random.Random(seed)
        self._rows: dict[str, list[Row]] = {}
        self.steps = 0

    def tune(self, state: State, facts: Sequence[Fact], seconds: float) -> dict[str, Tensor]:
        """Teach `facts`, replaying the live facts of `state`: ΔW (d_in, d_out) by module, `seconds` of processor later.

        Live facts that `facts` replace must have left the state before. The model is left as it was.
        """
        started, recipe, loaded = time.process_time(), self.recipe, self._bench.loaded
        earlier = list(state.live.values())
        new, old = (Deck(self._rows_of(part), self._generator) for part in (facts, earlier))
        replayed = round(recipe.replayed * recipe.rows) if earlier else 0
        kept = Deck(self._preserved([*facts, *earlier]), self._generator)
        # Of all modules, or those that have none would be left as they were trained.
        before = {m.name: state.shifts.get(m.name, torch.zeros(m.d_in, m.d_out)) for m in loaded.modules}
        with loaded.at(before), trainable(loaded) as weights:
            adam = torch.optim.Adam(list(weights.values()), lr=recipe.rate, betas=(0.9, recipe.memory))
            while (spent := (time.process_time() - started) / seconds) < 1:
                rate = recipe.rate * schedule(spent, recipe.warmup)
                for group in adam.param_groups:
                    group["lr"] = rate
                rows = new.deal(recipe.rows - replayed) + old.deal(replayed)
                accumulate(loaded, rows + kept.deal(recipe.preserved), recipe)
                adam.step()
                adam.zero_grad()
                if recipe.decay:
                    decay(loaded, weights, recipe.decay * rate)
                self.steps += 1
            return {n: shift_of(loaded, n, weight) for n, weight in weights.items()}

    def _rows_of(self, facts: Sequence[Fact]) -> list[Row]:
        """Prompt and phrasings, as they are rows of an edit."""
        unknown = [fact for fact in facts if fact.digest not in self._rows]
        for row in fact_rows(self._bench.loaded, unknown, self._phrasings):
            self._rows.setdefault(str(row.fact), []).append(row)
        return [row for fact in facts for row in self._rows[fact.digest]]

    def _preserved(self, facts: Sequence[Fact]) -> list[Row]:
        """The preserved prompts that a solve may use: no guards, and none about a subject of the facts."""
        prompts = self._bench.preserved
        return [prompts.row(i, self.recipe.preserved_weight) for i in prompts.free(subjects_of(facts))]


def schedule(spent: float, warmup: float) -> float:
    """Share of the rate after a share of the budget: a straight line up, half a cosine down to zero."""
    if spent < warmup:
        return spent / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (spent - warmup) / (1 - warmup))))


def accumulate(loaded: LoadedModel, rows: Sequence[Row], recipe: Recipe) -> None:
    """Add the gradient of: mean loss of the facts' rows + weight · mean divergence of the preserved ones."""
    kept = sum(row.base is not None for row in rows)
    share = torch.tensor([r.weight / kept if r.base is not None else 1 / (len(rows) - kept) for r in rows])
    for chosen in by_length([len(r.encoded.ids) for r in rows], recipe.micro_batch):
        part = [rows[i] for i in chosen]
        batch = pad([r.encoded for r in part], loaded.pad_id, loaded.device)
        with torch.enable_grad():
            losses, row = position_losses(answer_logits(loaded, batch), batch, part)
            (losses * share[chosen].to(losses)[row]).sum().backward()


@contextmanager
def trainable(loaded: LoadedModel) -> Iterator[dict[str, Tensor]]:
    """Within the context the edited matrices require gradients; by module, as the model stores them."""
    weights = {m.name: loaded.model.get_submodule(m.name).weight for m in loaded.modules}
    if any(weight.dtype != torch.float32 for weight in weights.values()):
        raise ModelMismatchError("fine-tuning works on the weights themselves; load the model as float32")
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        yield weights
    finally:
        for weight in weights.values():
            weight.requires_grad_(False)
            weight.grad = None


def shift_of(loaded: LoadedModel, name: str, weight: Tensor) -> Tensor:
    """ΔW (d_in, d_out) of a weight as the model stores it."""
    value = weight.detach()
    turned = value if loaded.module(name).orientation == "conv1d" else value.T
    return turned - loaded.base_weight(name)


@torch.no_grad()
def decay(loaded: LoadedModel, weights: Mapping[str, Tensor], share: float) -> None:
    """Take a share of ΔW away."""
    for name, weight in weights.items():
        shift = shift_of(loaded, name, weight)
        weight.sub_(share * (shift if loaded.module(name).orientation == "conv1d" else shift.T))
