"""Every option that a store fixes at `init`: what is edited, by which rule, in which solve."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from lifelong_edit.errors import UsageError

AUTHOR_VARIABLE = "LIFELONG_AUTHOR"
"""The environment variable that says who makes steps, unless a call does."""
KEY_VARIABLE = "LIFELONG_KEY_FILE"
"""The environment variable that names the key file of encrypted stores; several, separated as in PATH, are tried."""
SUBJECT = "@subject"
"""Stands behind a module's name where it is edited at the tokens of the subject, not at the answer."""
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


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Fixed at `init`, stored with the store, and part of what decides each digest.

    The defaults were chosen on the training facts of a small GPT-2 that knows real facts, never on facts whose figures
    are reported; `lifelong-edit train --choose` chooses for a model of your own.
    """

    modules: tuple[str, ...] = ()
    """Names of the edited weight matrices. A name with `@subject` behind it is edited at the tokens of the subject, all
    others at the answer. Empty: the network's modules, if there is a network, else those of the upper half of the
    layers, six at most."""
    device: str = "cpu"
    """Where the model lives: `cpu`, `cuda`, `cuda:1`, `mps`."""
    dtype: str = "float32"
    """How the model is held: `float32` or `bfloat16`. Statistics and solves are in float32 or better in both cases."""
    micro_batch: int = 64
    """Sequences per forward and backward pass. The weights do not depend on it beyond rounding."""
    seed: int = 0
    """Seed of every random draw."""

    editor: str = "gradient"
    """The editing rule: `malmen` (needs a trained hypernetwork), `gradient` (needs none) or `ultraedit`. A store
    that is made with a hypernetwork, as one for `atlas` is, has `malmen` unless told otherwise."""
    ask: Ask = "joint"
    """`joint`: this project's solve. `published`: the solve of the original MALMEN, with one pass, nothing preserved
    and raw gradients."""
    passes: int = 3
    """Rounds per batch; each round traces the model, asks for changes and solves. The network of `atlas` brings 2."""
    more_passes: int = 4
    """How many further rounds a batch may have while the share of its facts that has taken is below `taken_enough`."""
    taken_enough: float = 0.9
    """The share of a batch's facts that is enough. For this setting a fact has taken when each token of its target is
    the most probable one after its prompt."""
    eta: float | None = None
    """The step. For `gradient` it is the share of the facts' loss that all matrices together ask for in one pass. None:
    1.8 for `gradient`, 1e-6 for `ultraedit`; `malmen` begins with the step of `gradient` and learns its own."""
    kappa: float = 2.0
    """Damping κ of the output metric (Γ + κI)⁻¹, relative to the mean of Γ's diagonal."""
    trust: float = 1.5
    """Bound on the value difference of a single row, as a multiple of the root mean square of the row norms of the
    solve's facts at their first pass."""
    c0: float = 1000.0
    """How many positions of ordinary text the preservation gram C₀ counts for, in matrices edited at the answer."""
    subject_c0: float = 4000.0
    """The same in matrices edited at the subject. It is larger there, since all text runs through these matrices, and a
    change to them moves it."""
    log_ridge: float | None = None
    """The ridge ℓ in λ = exp(ℓ)·trace(C₀)/d_in. None: λ is 1, or what the hypernetwork learned."""
    phrasings: int = 3
    """How many rephrases of a fact become rows of the solve beside its prompt."""
    rehearse: int = 50
    """How many earlier facts, of those in force, are rows of a batch's solve."""
    preserved: int = 150
    """How many preserved prompts are rows of a batch's solve. They are drawn near the batch."""
    preserved_keys: float = 2.0
    """Weight of the keys of all preserved prompts, whether they are rows or not, in what a solve holds still. It
    protects prompts that the rows have no room for, at no cost in time."""
    preserved_weight: float = 1.5
    """Weight of a preserved prompt's rows in the solve."""
    preserved_step: float = 0.1
    """Step of the preserved rows relative to the facts' step. It is small because their loss, a divergence near zero,
    is curved many times as strongly as the facts' cross-entropy: with the same step each pass would overshoot."""
    preserved_tokens: int = 3
    """How many tokens of the base model's own answer to a preserved prompt are held."""
    reconsolidation_passes: int = 24
    """The most rounds that a reconsolidation makes over all facts in force."""
    reconsolidation_gain: float = 0.0002
    """A reconsolidation ends early when, over four passes, the mean gain per pass is less than this share of the first
    loss. 0: all passes are made."""
    reconsolidation_eta: float = 1.8
    """The step of a reconsolidation, as `eta` is for `gradient`."""
    reconsolidation_phrasings: int = 1
    """How many phrasings of each fact, beside its prompt, are rows of each pass of a reconsolidation. They are drawn
    afresh in each pass."""
    reconsolidation_decay: float = 0.01
    """The share of ΔW that each pass of a reconsolidation but the first lets go before it solves. What no row asks for
    again fades, and what has long been learned is not pushed further at its neighbours' cost."""
    reconsolidation_preserved: int = 300
    """How many preserved prompts are rows of each pass of a reconsolidation. They are drawn afresh in each pass."""
    reconsolidation_keys: float = 0.5
    """`preserved_keys` of a reconsolidation. It is less than a batch's: rows are drawn afresh in each pass, so every
    prompt has its turn as a row, and a larger weight would also hold back the other phrasings of the facts."""
    text_tokens: int = 60_000
    """Over how many tokens of ordinary text the gram C₀ is taken."""
    gram_rank: int | None = None
    """Rank of the factor that C₀ is kept as, beside a diagonal. 0: C₀ is kept whole, in float64. None: whole up to a
    d_in of 8,192, beyond it a factor of rank 1,024."""

    snapshot_every: int = 10
    """Steps between two states that are stored whole, so that going back stays quick."""
    gate_perplexity: float = 1.5
    """The gate refuses a batch after which perplexity exceeds this multiple of the base model's."""
    gate_min_taken: float = 0.0
    """The gate refuses a batch of which a smaller share of facts took, by generation."""
    conflict_probability: float | None = None
    """From which probability on two facts about one subject count as asking for the same thing. None: the threshold of
    the store's scorer, which is chosen for one false alarm in 1,000 unrelated facts. 1: only what is equal in so many
    words."""
    conflict_cosine: float = -1.0
    """Two facts are compared only where the cosine of their centred keys is at least this. −1: all are compared."""
    conflict_policy: str = "supersede"
    """What follows from a contradiction: `supersede`, `reject`, `keep` or `quarantine`."""
    trusted_sources: tuple[str, ...] = ()
    """Values of `source`, by comma, the most trusted first, with `*` for any text. All other sources come after them. A
    fact never replaces one from a more trusted source."""

    def __post_init__(self) -> None:
        for name, value in msgspec.structs.asdict(self).items():
            # JSON has no infinity: it would be stored as null, and come back as the default.
            if isinstance(value, float) and not math.isfinite(value):
                raise UsageError(f"setting {name} is {value}; it must be a finite number")
        for name in (
            "micro_batch",
            "passes",
            "kappa",
            "trust",
            "snapshot_every",
            "text_tokens",
            "preserved_tokens",
            "reconsolidation_passes",
            "reconsolidation_eta",
        ):
            if not getattr(self, name) > 0:
                raise UsageError(f"setting {name} is {getattr(self, name)}; it must be greater than zero")
        for name in (
            "c0",
            "subject_c0",
            "more_passes",
            "taken_enough",
            "phrasings",
            "rehearse",
            "preserved",
            "preserved_keys",
            "preserved_weight",
            "preserved_step",
            "reconsolidation_gain",
            "reconsolidation_decay",
            "reconsolidation_phrasings",
            "reconsolidation_keys",
            "reconsolidation_preserved",
            "gate_min_taken",
        ):
            if not getattr(self, name) >= 0:
                raise UsageError(f"setting {name} is {getattr(self, name)}; it must not be negative")
        for name, at_one in (
            ("reconsolidation_decay", "nothing would be left of a change"),
            ("reconsolidation_gain", "it would end before it began"),
        ):
            if not getattr(self, name) < 1:
                raise UsageError(f"setting {name} is {getattr(self, name)}; it must be less than 1, where {at_one}")
        if self.gram_rank is not None and not self.gram_rank >= 0:
            raise UsageError(f"setting gram_rank is {self.gram_rank}; it must not be negative")
        if self.conflict_probability is not None and not self.conflict_probability > 0:
            raise UsageError(f"setting conflict_probability is {self.conflict_probability}; it must be above zero")
        if self.eta is not None and not self.eta > 0:
            raise UsageError(f"setting eta is {self.eta}; it must be greater than zero")
        if self.ask not in ("joint", "published"):
            raise UsageError(f"setting ask is {self.ask!r}; it must be 'joint' or 'published'")
        if self.conflict_policy not in ("supersede", "reject", "keep", "quarantine"):
            raise UsageError(
                f"setting conflict_policy is {self.conflict_policy!r}; it must be supersede, reject, keep or quarantine"
            )
        if self.editor not in ("malmen", "gradient", "ultraedit"):
            raise UsageError(f"setting editor is {self.editor!r}; it must be malmen, gradient or ultraedit")

    def replace(self, **changes: object) -> Settings:
        """The same settings with some fields changed, checked again."""
        return msgspec.structs.replace(self, **changes)
