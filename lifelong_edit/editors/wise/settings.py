"""The settings of the side memory."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from lifelong_edit.settings import AtLeastOne, Count, NotNegative, Positive, StoreSettings

Share = Annotated[float, Meta(gt=0, le=1)]


class WiseSettings(StoreSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of `wise`. Of several modules the lowest one has the side memory; unless one is named, that of layer 27 of 32.

    Where the default is none, it is the published value for GPT-J, Llama-2-7B and Llama-3-8B, known by their type,
    depth and width, and for every other model what is said here.
    """

    editor: str = "wise"
    """The editing rule."""
    rate: Positive | None = None
    """The step of gradient descent on the side memory. None: 1, or 0.9 for Llama-3-8B; for other models steps are of
    one size whatever the gradient's is, see `relative_rate`."""
    relative_rate: Positive = 0.01
    """Where no rate is given or published: the size of a step, in the root mean square over the entries that it moves,
    as a share of that of the matrix."""
    decay: NotNegative = 1e-5
    """Weight decay of the side memory's weights."""
    steps: AtLeastOne | None = None
    """The most steps for a fact. None: 70, or 30 for Llama-3-8B."""
    enough: NotNegative = 0.02
    """A fact is learnt when its loss is no more than this and all losses together changed by no more than `settled`."""
    settled: NotNegative = 1e-4
    """See `enough`."""
    clamp: Positive = 1.0
    """How far no weight of the side memory may be from the base's."""
    share: Share = 0.2
    """The share of the entries of the matrix that a shard moves, drawn when it begins."""
    shard: AtLeastOne = 500
    """Facts that are taught in one shard."""
    shards: Annotated[int, Meta(ge=2)] = 2
    """Full shards that are merged into one."""
    density: Share = 0.53
    """The share of the entries of a shard, the largest, that a merge keeps."""
    margins: tuple[str, ...] = ()
    """a, b, c: at an unrelated prompt the side memory changes the activation by a at the most, at the fact's by b at
    the least, and there by c more than elsewhere. None given: 5, 20, 10; 2, 20, 10 for Llama-3-8B; 15, 40, 20 for
    GPT-J; for other models 0.05, 0.2, 0.1 of the activation's own mean size, measured at `init`."""
    margin_weight: NotNegative | None = None
    """Of these margins against the loss, whose unit they do not share. None: 1, and for other models one over the
    activation's mean size."""
    contexts: Count = 10
    """How many beginnings of sentences are drawn at `init` to stand before prompts."""
    context_tokens: AtLeastOne = 10
    """Tokens of such a beginning, at the most."""
    phrasings: Count = 0
    """How many rephrases that a fact brings are taught beside its prompt."""
    threshold: Share | None = None
    """The side memory speaks from this share of the least activation of the facts in force on. None: 0.88, or 0.5 for
    Llama-3-8B."""
