"""The settings of the rule that searches its targets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from lifelong_edit.settings import AtLeastOne, BelowOne, Count, NotNegative, Positive, StoreSettings

if TYPE_CHECKING:
    import torch

Narrow = Literal["bfloat16", "float32"]


class SearchingSettings(StoreSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of rules that search: what they ask, and how they go about it."""

    preserved_tokens: AtLeastOne = 3
    """How many tokens of the base model's own answer to a preserved prompt are held."""
    phrasings: Count = 3
    """How many rephrases that a fact brings are taught beside its prompt."""
    contexts: Count = 8
    """How many beginnings of sentences are drawn at `init` to stand before prompts; each round draws one for a fact."""
    context_tokens: AtLeastOne = 10
    """Tokens of such a beginning, at the most."""
    rounds: AtLeastOne = 24
    """The most rounds of a batch's search: one forward and one backward pass each, over the facts that have not taken
    yet and some preserved prompts."""
    rate: Positive = 0.1
    """The step of the first round (Adam's rate), in root mean squares of the matrix's outputs. It falls to a tenth."""
    decay: BelowOne = 0.02
    """The share of what was found that each round lets go: what no fact asks for again fades."""
    enough: Positive = 0.05
    """A fact rests while the loss at each token of its answer is below this, in all that a round asks of it."""
    swapped: Count = 4
    """With how many other subjects the prompt of each fact is asked beside them: these answers must stay too."""
    precision: Narrow | None = None
    """Number format of the passes of the search, where the model is held in float32: `bfloat16` or `float32`. What a
    step leaves, and what judges it, is in the model's own. None: settled at `init` by what the device is quick at."""
    reconsolidation_rounds: AtLeastOne = 12
    """How often a reconsolidation goes over all facts in force, some at a time."""
    reconsolidation_facts: AtLeastOne = 50
    """How many facts it searches for at a time."""

    def placed(self, device: torch.device) -> Self:
        """The settings with the number format of the passes settled."""
        from lifelong_edit.numerics.devices import multiplies_bfloat16

        quick: Narrow = "bfloat16" if multiplies_bfloat16(device) else "float32"
        return self if self.precision is not None else self.replace(precision=quick)


class SearchSettings(SearchingSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of `search`. The defaults were chosen on SmolLM2-135M-Instruct with training facts alone."""

    editor: str = "search"
    """The editing rule."""
    c0: NotNegative = 5000.0
    """How many positions of ordinary text the preservation gram C₀ counts for."""
    around: NotNegative = 5.0
    """Weight of the keys at *all* tokens of the preserved prompts in what a solve holds still."""
    log_ridge: float = -4.6
    """The ridge ℓ in λ = exp(ℓ)·trace(C₀)/d_in."""
    more_rounds: Count = 16
    """How many further ones a batch may have where the share of its facts that has taken is below `taken_enough`."""
    taken_enough: NotNegative = 0.9
    """The share of a batch's facts that is enough. For this setting a fact has taken when in every form each token of
    its target is the most probable one after its prompt."""
    rehearse: Count = 25
    """How many earlier facts, of those in force, are searched for again beside a batch."""
    preserved: Count = 150
    """How many preserved prompts a batch's search is held by. They are drawn near the batch."""
    preserved_at_once: AtLeastOne = 60
    """How many of them are asked in a round."""
    preserved_weight: NotNegative = 2.0
    """Weight of the mean divergence at preserved prompts against the mean loss of the facts."""
