"""The settings of the rules that search a hidden state at the subject and solve for weights that bring it about."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from lifelong_edit.editors.tries import Grid, Tries
from lifelong_edit.settings import AtLeastOne, Count, NotNegative, Positive, StoreSettings

Units = Literal["relative", "published"]
Metric = Literal["text", "identity"]
Share = Annotated[float, Meta(gt=0, le=1)]

RELATIVE = frozenset({"rate", "c0", "penalty"})
"""What means nothing across models but as a multiple of what is usual."""
SEVERAL, ONE = (0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5), (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
"""Shares of the depth up to which several layers are edited, and at which one is."""


def tries(depths: tuple[float, ...], *, c0: bool = True, **own: tuple[float, ...]) -> Tries:
    """What may be tried for a rule of the family: of its search, C₀ where it has a weight, and settings of its own."""
    grid: Grid = {
        "rate": (0.25, 0.5, 1.0, 2.0, 4.0),
        **({"c0": (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)} if c0 else {}),
        **own,
        "clamp": (0.35, 0.5, 0.75, 1.0, 1.5, 2.5, 4.0, 6.0),
        "steps": (10, 15, 20, 25, 35, 50),
    }
    return Tries(grid=grid, relative=RELATIVE & {*grid}, depths=depths)


class LocateSettings(StoreSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of `rome`, `r-rome`, `memit`, `memit-seq`, `emmet`, `alphaedit` and `nse`.

    Where the default is none, it is the published value for the models in the
    [table of constants](rules.md#constants), known by their type, depth and width, and for every other model what is
    said here.
    """

    order: ClassVar[tuple[str, ...]] = ()

    editor: str = "memit"
    """The editing rule."""
    units: Units = "relative"
    """`relative`: ridges and thresholds are relative to what the model's keys of text show. `published`: absolute, with
    the values of the published code and no ridge where it has none."""
    contexts: Count | None = None
    """How many beginnings of sentences are drawn at `init` to stand before prompts. None: 5; 20 for `rome` and
    `r-rome`."""
    context_tokens: AtLeastOne = 10
    """Tokens of such a beginning, at the most."""
    phrasings: Count = 0
    """How many rephrases that a fact brings are taught beside its prompt; the published rules take none."""
    steps: AtLeastOne | None = None
    """How often the loss of a fact's hidden state is looked at; the state moves between two looks. None: 25, or 20 for
    `rome` and `r-rome`."""
    rate: Positive | None = None
    """The step of the search (Adam's rate), in units of the hidden state. None: half of the typical size of its
    entries, by their median."""
    decay: NotNegative | None = None
    """Weight of the size of the change against the loss. None: 0.5."""
    clamp: Positive | None = None
    """The greatest size of the change, as a multiple of the hidden state's. None: 0.75; 4 for `rome` and `r-rome`."""
    kl: NotNegative = 0.0625
    """Weight of the divergence of what follows the subject in "{subject} is a"."""
    enough: Positive = 0.05
    """The search for a fact is over when its loss is below this."""
    c0: NotNegative | None = None
    """How many positions of ordinary text the gram C₀ counts for. None: as many as the matrix has inputs, as published
    for GPT-J and Llama-3; for `emmet`, whose slack multiplies it, a sixth of that, as for GPT-2-XL. Of no matter to
    `rome`, `r-rome` and `alphaedit`."""
    log_ridge: float = -9.2
    """The ridge ℓ in λ = exp(ℓ)·trace(C₀)/d_in beside C₀, which keeps a gram of little text from being singular; none
    with published units."""
    metric: Metric | None = None
    """Of `rome` and `r-rome`: whether a key is turned away from what text holds (`text`) or is taken as it is
    (`identity`). None: `text`; `identity` for Llama, Mistral and Qwen, as published."""
    slack: NotNegative = 0.1
    """Of `emmet`: μ, how far the values at the keys may stay from what is asked, in batches of more than one fact. 0:
    they meet it exactly; 1: `memit`."""
    free: Share = 0.02
    """Of `alphaedit`: edits stay in the directions that hold together at most this share of the trace of C₀. With
    published units: those of eigenvalues below it."""
    penalty: Positive | None = None
    """Of `alphaedit`: the ridge, relative to the mean of ‖kP‖² over text keys. None: 0.1; with published units 10, or
    1 for Llama-3-8B, which are absolute."""
    neurons: Share | None = None
    """Of `nse`: the share of the keys' size that the edited inputs carry. None: 1, which is all; 0.8 for GPT-J."""
    passes: AtLeastOne = 2
    """Of `nse`: how often facts whose hidden state is still far from what was searched are solved for."""
    settled: NotNegative | None = None
    """Of `nse`: a fact is solved for again while its hidden state is farther off than this. None: a fifth of what was
    asked; with published units 35 for GPT-2-XL, 15 for GPT-J, 2.5 for Llama."""
    reach: Positive | None = None
    """Of `nse`: a fact that is farther off than this is left alone, and reported. None: no bound; with published units
    150 for GPT-2-XL, 100 for GPT-J, 50 for Llama."""
