"""The settings of the rules that solve ridge regressions: what is a row, what is held, how large the steps are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from lifelong_edit.editors.registry import require_rule
from lifelong_edit.editors.tries import Grid, Tries
from lifelong_edit.settings import (
    AtLeastOne,
    BelowOne,
    Count,
    NotNegative,
    Positive,
    StoreSettings,
)

Ask = Literal["joint", "published"]
SOLVE = (
    "ask",
    "passes",
    "kappa",
    "c0",
    "subject_c0",
    "phrasings",
    "rehearse",
    "preserved",
    "preserved_keys",
    "preserved_weight",
    "preserved_step",
    "preserved_tokens",
)
"""The settings that a hypernetwork is trained for: a store that takes one takes these from it unless told otherwise."""
CHOSEN = "settings.json"
"""The file in which `train --choose` leaves what it found."""

GRID: Grid = {
    "eta": (0.6, 0.9, 1.3, 1.8, 2.2, 2.7, 3.3, 4.2),
    "reconsolidation_eta": (0.6, 0.9, 1.2, 1.8, 2.7, 3.6, 5.4),
    "c0": (30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0),
    "subject_c0": (300.0, 1000.0, 4000.0, 16_000.0),
    "preserved_keys": (0.0, 0.5, 1.0, 2.0, 4.0, 8.0),
    "passes": (1, 2, 3, 4, 5, 6, 8),
    "preserved_weight": (0.5, 1.0, 1.5, 2.5, 4.0),
    "preserved_step": (0.03, 0.1, 0.3, 1.0),
    "kappa": (0.3, 1.0, 2.0, 4.0, 8.0),
    "log_ridge": (-4.0, -2.0, 0.0, 2.0, 4.0, 6.0),
    "trust": (1.0, 1.5, 2.5, 4.0),
    "reconsolidation_keys": (0.0, 0.5, 2.0),
    "reconsolidation_passes": (8, 12, 16, 24, 32),
}
"""Values tried for `gradient`, and for the solve of `malmen`, which begins as it."""
TRIES = Tries(
    grid=GRID,
    # what a reconsolidation has settings of its own for (`reconsolidation_…`), and what it has none of
    stream_only=frozenset({"eta", "passes", "preserved_keys"}),
    beside=True,
    generated=False,
    reconsolidate=True,
    persists=False,
)


class RidgeSettings(StoreSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of `gradient` and `malmen`; the rules with moments have more.

    The defaults were chosen on the training facts of a small GPT-2 that knows real facts, never on facts whose figures
    are reported; `lifelong-edit train --choose` chooses for a model of your own.
    """

    order: ClassVar[tuple[str, ...]] = (
        *("modules", "device", "dtype", "micro_batch", "seed", "editor", "ask", "passes", "more_passes"),
        *("taken_enough", "eta", "kappa", "trust", "c0", "subject_c0", "log_ridge", "phrasings", "rehearse"),
        *("preserved", "preserved_keys", "preserved_weight", "preserved_step", "preserved_tokens"),
        *("reconsolidation_passes", "reconsolidation_gain", "reconsolidation_eta", "reconsolidation_phrasings"),
        *("reconsolidation_decay", "reconsolidation_preserved", "reconsolidation_keys", "text_tokens", "gram_rank"),
        *("snapshot_every", "gate_perplexity", "gate_min_taken", "conflict_probability", "conflict_cosine"),
        *("conflict_policy", "trusted_sources", "form", "system", "derived", "gate_noise", "shift_dtype"),
        *("solve_device", "key_dtype"),
    )

    at_rest: ClassVar[Mapping[str, tuple[str | int | None, ...]]] = {**StoreSettings.at_rest, "derived": (0,)}

    @property
    def closes(self) -> bool:
        """Whether the token that closes an answer is taught with it: all but published work does (`Task.bare`)."""
        return self.ask != "published"

    ask: Ask = "joint"
    """`joint`: this project's solve. `published`: the solve of the original MALMEN, with one pass, nothing preserved
    and raw gradients."""
    passes: AtLeastOne = 3
    """Rounds per batch; each round traces the model, asks for changes and solves. The network of `atlas` brings 2."""
    more_passes: Count = 4
    """How many further rounds a batch may have while the share of its facts that has taken is below `taken_enough`."""
    taken_enough: NotNegative = 0.9
    """The share of a batch's facts that is enough. For this setting a fact has taken when each token of its target is
    the most probable one after its prompt."""
    eta: Positive | None = None
    """The step. For `gradient` it is the share of the facts' loss that all matrices together ask for in one pass. None:
    1.8 for `gradient`; `malmen` begins with that step and learns its own; `ultraedit` goes by `relative_step`."""
    kappa: Positive = 2.0
    """Damping κ of the output metric (Γ + κI)⁻¹, relative to the mean of Γ's diagonal."""
    trust: Positive = 1.5
    """Bound on the value difference of a single row, as a multiple of the root mean square of the row norms of the
    solve's facts at their first pass."""
    c0: NotNegative = 1000.0
    """How many positions of ordinary text the preservation gram C₀ counts for, in matrices edited at the answer."""
    subject_c0: NotNegative = 4000.0
    """The same in matrices edited at the subject. It is larger there, since all text runs through these matrices, and a
    change to them moves it."""
    log_ridge: float | None = None
    """The ridge ℓ in λ = exp(ℓ)·trace(C₀)/d_in. None: λ is 1, or what the hypernetwork learned."""
    phrasings: Count = 3
    """How many rephrases of a fact become rows of the solve beside its prompt."""
    rehearse: Count = 50
    """How many earlier facts, of those in force, are rows of a batch's solve."""
    preserved: Count = 150
    """How many preserved prompts are rows of a batch's solve. They are drawn near the batch."""
    preserved_keys: NotNegative = 2.0
    """Weight of the keys of all preserved prompts, whether they are rows or not, in what a solve holds still. It
    protects prompts that the rows have no room for, at no cost in time."""
    preserved_weight: NotNegative = 1.5
    """Weight of a preserved prompt's rows in the solve."""
    preserved_step: NotNegative = 0.1
    """Step of the preserved rows relative to the facts' step. It is small because their loss, a divergence near zero,
    is curved many times as strongly as the facts' cross-entropy: with the same step each pass would overshoot."""
    derived: Count = 0
    """How many rows of a batch's solve, beside the preserved prompts that a store has, are derived from the facts:
    their prompts, with the subjects of others. For preserved prompts that are general and name no neighbours of facts.
    In a store without any, all preserved rows are derived, whatever this is."""
    reconsolidation_passes: AtLeastOne = 24
    """The most rounds that a reconsolidation makes over all facts in force."""
    reconsolidation_gain: BelowOne = 0.0002
    """A reconsolidation ends early when, over four passes, the mean gain per pass is less than this share of the first
    loss. 0: all passes are made."""
    reconsolidation_eta: Positive = 1.8
    """The step of a reconsolidation, as `eta` is for `gradient`."""
    reconsolidation_phrasings: Count = 1
    """How many phrasings of each fact, beside its prompt, are rows of each pass of a reconsolidation. They are drawn
    afresh in each pass."""
    reconsolidation_decay: BelowOne = 0.01
    """The share of ΔW that each pass of a reconsolidation but the first lets go before it solves. What no row asks for
    again fades, and what has long been learned is not pushed further at its neighbours' cost."""
    reconsolidation_preserved: Count = 300
    """How many preserved prompts are rows of each pass of a reconsolidation. They are drawn afresh in each pass."""
    reconsolidation_keys: NotNegative = 0.5
    """`preserved_keys` of a reconsolidation. It is less than a batch's: rows are drawn afresh in each pass, so every
    prompt has its turn as a row, and a larger weight would also hold back the other phrasings of the facts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_rule(self.editor)


Settings = RidgeSettings
"""What a store of any rule so far is made with."""
