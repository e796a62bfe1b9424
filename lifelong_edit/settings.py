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
    """Names of the edited weight matrices, with `@subject` behind those that are edited at the tokens of the subject;
    empty: those of the network, if there is one, else the upper half of the layers (`default_layers`)."""
    device: str = "cpu"
    dtype: str = "float32"
    micro_batch: int = 64
    """Sequences per forward and backward pass; the deltas do not depend on it beyond rounding."""
    seed: int = 0

    editor: str = "gradient"
    """`malmen` (needs a trained hypernetwork), `gradient` (no network) or `ultraedit`."""
    ask: Ask = "joint"
    """`joint`: this project's solve; `published`: the original MALMEN (one pass, P = 0, raw gradients)."""
    passes: int = 3
    """Rounds of tracing, asking and solving per batch."""
    more_passes: int = 4
    """How many further ones a batch may have whose facts have not taken: small batches are held back by all else."""
    taken_enough: float = 0.9
    """Share of the facts that is enough: those to whose prompt the target is more probable than all else, by token."""
    eta: float | None = None
    """Step; None: 1.8 for `gradient` (the share of the loss that all modules together ask for in a pass), 1e-6 for
    `ultraedit`; `malmen` learns its own and begins with that of `gradient`."""
    kappa: float = 2.0
    """Damping of the output metric (Γ + κI)⁻¹, relative to Γ's mean diagonal."""
    trust: float = 1.5
    """Bound on a row's value difference, as a multiple of the rms row norm of the solve's facts at their first pass."""
    c0: float = 1000.0
    """How many text keys the mean gram C₀ counts for."""
    subject_c0: float = 4000.0
    """The same in modules that are edited at the subject: what all text runs through is moved at its cost."""
    log_ridge: float | None = None
    """ℓ in λ = exp(ℓ)·trace(C₀)/d_in; None: λ = 1 unscaled, or the hypernetwork's learned ridge."""
    phrasings: int = 3
    """How many rephrases of a fact become rows beside its prompt (m)."""
    rehearse: int = 50
    """How many earlier live facts are rows of a batch's solve."""
    preserved: int = 150
    """How many preserved prompts are rows of a batch's solve, drawn near the batch."""
    preserved_keys: float = 2.0
    """Weight in P of the keys of all preserved prompts, rows or not: what rows have no room for is held at no cost."""
    preserved_weight: float = 1.5
    preserved_step: float = 0.1
    """Step of preserved rows relative to facts'. Theirs is the curvature of a divergence that is near zero, many times
    that of the facts' cross-entropy: with the same step each pass overshoots and grows what it should take back."""
    preserved_tokens: int = 3
    """Length of the base model's own continuation that stands for a preserved prompt's answer."""
    reconsolidation_passes: int = 24
    """At most so many rounds over all live facts together."""
    reconsolidation_gain: float = 0.0002
    """A reconsolidation ends when four passes lower the facts' loss by less than this share of the first one each; 0:
    all passes are made."""
    reconsolidation_eta: float = 1.8
    """Its step, as `eta` of `gradient`."""
    reconsolidation_phrasings: int = 1
    """How many of a fact's phrasings are rows of each of its passes beside the prompt, drawn afresh."""
    reconsolidation_decay: float = 0.01
    """The share of ΔW that each of its passes but the first lets go before it solves: what no row asks for again
    fades, and what has long been learned is not pushed further at its neighbours' cost."""
    reconsolidation_preserved: int = 300
    """How many preserved prompts are rows in each of its passes, drawn afresh."""
    reconsolidation_keys: float = 0.5
    """Its `preserved_keys`: less than a batch's, since with rows drawn afresh in each pass the prompts have their turn,
    and what their keys hold beside that are the facts' other phrasings."""
    text_tokens: int = 60_000
    """How many tokens of text the mean gram C₀ is taken over."""
    gram_rank: int | None = None
    """Rank of the factor that C₀ is kept as, beside a diagonal; 0: whole, in float64; None: whole up to a d_in of
    8,192, beyond it a factor of rank 1,024."""

    snapshot_every: int = 10
    gate_perplexity: float = 1.5
    """A batch after which perplexity exceeds this multiple of the base model's is refused."""
    gate_min_taken: float = 0.0
    """A batch of which a smaller share of facts took (by generation) is refused."""
    conflict_probability: float | None = None
    """From this probability on two facts about one subject ask for the same thing; None: that from which the
    store's scorer took one in 1,000 unrelated facts for one in force. 1: only what is equal in so many words."""
    conflict_cosine: float = -1.0
    """Facts whose centred keys have a smaller cosine are not compared, whatever else speaks for them; −1: all are."""
    conflict_policy: str = "supersede"
    """What a contradiction leads to: `supersede`, `reject`, `keep` or `quarantine`."""
    trusted_sources: tuple[str, ...] = ()
    """Values of `source`, the most trusted first, with `*` for any text: a fact never replaces one from a more trusted
    source. All others come after them."""

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
