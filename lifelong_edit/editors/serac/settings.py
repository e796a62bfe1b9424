"""The settings of SERAC."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from lifelong_edit.editors.retrieval.settings import require_wordings
from lifelong_edit.settings import AtLeastOne, StoreSettings

Share = Annotated[float, Meta(ge=0, le=1)]


class SeracSettings(StoreSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of `serac`. No module is edited; token states are read behind the block of the highest one that is named."""

    editor: str = "serac"
    """The editing rule."""
    threshold: Share = 0.5
    """A question is within the scope of a fact where its likeness to the fact, exp(−‖a − b‖²), is greater than this."""
    encoder: str | None = None
    """Whose token states the scope classifier reads: those of a sentence transformer or another BERT, a folder by its
    whole path. None: the base model's own. As in training."""
    wording: str = r"{facts} {question}"
    """How a fact stands before a prompt, `\\n` for a line break; by default as published. As in training."""
    chat_wording: str = r"{facts}\n{question}"
    """How it stands before the words of a turn."""
    room: AtLeastOne | None = None
    """Tokens of the model's context that stay free for the answer: where a fact would leave fewer, the base model
    answers. None: a quarter of the context, 64 at most."""
    rank: AtLeastOne = 32
    """Of training: the rank of what the counterfactual model adds to each matrix of the base model."""
    width: AtLeastOne = 128
    """Of training: how long the vectors are that the scope classifier compares."""
    negatives: Literal["near", "published"] = "near"
    """Of training: which prompts count as hard ones. `near`: the 100 that are most like a fact's own and ask for
    something else by subject or relation. `published`: without the first 25 of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_wordings(self.wording, self.chat_wording)
