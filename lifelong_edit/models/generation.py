"""Generation in batches: greedily the same tokens as one prompt at a time, at a fraction of the time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lifelong_edit.errors import BadInputError
from lifelong_edit.models.encoding import encode_prompt
from lifelong_edit.models.forward import last_position
from lifelong_edit.models.loaded import LoadedModel
from lifelong_edit.world import ALONE


@dataclass(frozen=True)
class Generation:
    """New tokens after a prompt. `end` is the end-of-text token that followed them, None where none did."""

    ids: tuple[int, ...]
    end: int | None = None

    @property
    def stopped(self) -> bool:
        """Whether the model ended the text by itself."""
        return self.end is not None

    @property
    def with_end(self) -> tuple[int, ...]:
        """The new tokens, the one that ended the text among them."""
        return self.ids if self.end is None else (*self.ids, self.end)


Choose = Callable[[Tensor], Tensor]
"""The next token of each row, (b,) long, from its logits (b, vocabulary)."""
Tell = Callable[[int], None]
"""Is told how many are done."""


def most_probable(logits: Tensor) -> Tensor:
    """Greedy: the most probable token of each row, (b,) long."""
    return logits.argmax(-1)


def end_ids(loaded: LoadedModel) -> frozenset[int]:
    """The tokens that end a text: the model's and the tokenizer's."""
    configured = getattr(getattr(loaded.model, "generation_config", None), "eos_token_id", None)
    ids = list(configured) if isinstance(configured, list | tuple) else [configured]
    return frozenset(int(i) for i in (*ids, loaded.tokenizer.eos_token_id) if i is not None)


def generate_greedy(
    loaded: LoadedModel, prompts: Sequence[str], max_new_tokens: Sequence[int] | int, batch_size: int = 64
) -> list[list[int]]:
    """The tokens that the model most probably goes on with, one list per prompt; see `generate`."""
    return [list(g.ids) for g in generate(loaded, prompts, max_new_tokens, batch_size)]


def generate(
    loaded: LoadedModel,
    prompts: Sequence[str],
    max_new_tokens: Sequence[int] | int,
    batch_size: int = 64,
    choose: Choose = most_probable,
    tell: Tell | None = None,
) -> list[Generation]:
    """Continuations of prompts, in their order, each cut at the end of text or of the model's context.

    max_new_tokens: one bound for all prompts or one for each. choose: which token comes next; greedy by default. tell:
    told after each batch how many prompts are done.
    Raises BadInputError for a prompt that fills the context.
    """
    encoded = [encode_prompt(loaded.tokenizer, loaded.put(prompt)) for prompt in prompts]
    return generate_from_ids(loaded, encoded, max_new_tokens, batch_size, choose, tell)


def generate_from_ids(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: Sequence[int] | int,
    batch_size: int = 64,
    choose: Choose = most_probable,
    tell: Tell | None = None,
    ends: Iterable[int] = (),
) -> list[Generation]:
    """As `generate`, of prompts that are token ids already. ends: further tokens that end an answer."""
    bounds = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    if len(bounds) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts but {len(bounds)} values of max_new_tokens")
    for ids in prompts:
        if len(ids) >= loaded.context:
            raise BadInputError(f"a prompt has {len(ids)} tokens and leaves no room in a context of {loaded.context}")
    limits = [min(bound, loaded.context - len(ids)) for bound, ids in zip(bounds, prompts, strict=True)]
    stops = end_ids(loaded).union(ends)

    def work(chosen: list[int]) -> list[Generation]:
        return _generate_batch(loaded, [prompts[i] for i in chosen], [limits[i] for i in chosen], choose, stops)

    # What is drawn is drawn in the order of the batches, in every process alike.
    world = loaded.world if choose is most_probable else ALONE
    return world.across(_batches([len(ids) for ids in prompts], limits, loaded.context, batch_size), work, tell)


def _batches(lengths: list[int], limits: list[int], context: int, batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, none of which goes beyond the context before all its rows are done."""
    chosen: list[int] = []
    furthest = 0
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], limits[i])):
        furthest = max(furthest, limits[i])
        if chosen and (len(chosen) == batch_size or lengths[i] + furthest > context):
            yield chosen
            chosen, furthest = [], limits[i]
        chosen.append(i)
    if chosen:
        yield chosen


class Writing:
    """Answers that are written side by side, token by token. limits: tokens at most of each; ends: what ends any."""

    def __init__(self, limits: Sequence[int], ends: Collection[int]) -> None:
        self._limits, self._ends = limits, ends
        self._produced: list[list[int]] = [[] for _ in limits]
        self._stopped: list[int | None] = [None] * len(limits)
        self.open = {row for row, limit in enumerate(limits) if limit > 0}
        """The rows of answers that go on."""

    def take(self, tokens: Sequence[int]) -> None:
        """The next token of each row; those of answers that have ended say nothing."""
        for row, token in enumerate(tokens):
            if row in self.open:
                if token in self._ends:
                    self._stopped[row] = token
                else:
                    self._produced[row].append(token)
                if token in self._ends or len(self._produced[row]) == self._limits[row]:
                    self.open.discard(row)

    def generations(self) -> list[Generation]:
        """What was written, row by row."""
        return [Generation(tuple(ids), end) for ids, end in zip(self._produced, self._stopped, strict=True)]


@torch.inference_mode()
def _generate_batch(
    loaded: LoadedModel, prompts: list[Sequence[int]], limits: list[int], choose: Choose, ends: frozenset[int]
) -> list[Generation]:
    """One batch, padded on the left so that all prompts end at the same column; keys and values are kept."""
    ids, mask = _left_padded(prompts, loaded.pad_id, loaded.device)
    writing = Writing(limits, ends)
    cache, step = None, ids
    with last_position(loaded.model):
        while writing.open:
            positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -step.shape[1] :]
            out = loaded.model(
                input_ids=step, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            )
            cache, best = getattr(out, "past_key_values", None), choose(out.logits[:, -1])
            writing.take(best.tolist())
            # A model that keeps none, as Mamba, reads the whole text again.
            step = best[:, None] if cache is not None else torch.cat([step, best[:, None]], 1)
            mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], 1)
    return writing.generations()


def _left_padded(prompts: list[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask, (b, t) long each, every prompt ending in the last column."""
    width = max(len(p) for p in prompts)
    ids = torch.tensor([[pad_id] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask
