"""The settings of retrieval."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from lifelong_edit.errors import UsageError
from lifelong_edit.settings import AtLeastOne, BelowOne, Count, StoreSettings

FACTS, QUESTION, BREAK = "{facts}", "{question}", r"\n"
"""What stands in a wording for the sentences of facts, for the question itself, and for a line break."""
Cosine = Annotated[float, Meta(ge=-1, le=1)]


class RetrievalSettings(StoreSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of `retrieval`. No module is edited; states are read behind the block of the highest one that is named.

    `retrieval+RULE` has them beside those of the rule, but for `threshold`; its `phrasings` are those that the rule is
    taught, and states are read at the layer 27 of 32, whatever is edited.
    """

    editor: str = "retrieval"
    """The editing rule."""
    mentioned: bool = True
    """Whether a question has to mention a fact's subject. Then subjects are taken out where question and fact are
    compared; else they are compared as they are."""
    encoder: str | None = None
    """What tells how alike question and fact are: the folder of a sentence transformer (a BERT with mean pooling, such
    as all-MiniLM-L6-v2), by its whole path. None: the base model's own states, in the mean over tokens."""
    false_alarms: BelowOne = 0.05
    """Of how many pairs of preserved prompts that ask for different things the gate would take one for the other: so
    its threshold is chosen at `init`."""
    threshold: Cosine | None = None
    """From which cosine on a question asks for a fact. None: as `false_alarms` says."""
    most: AtLeastOne = 1
    """How many facts are put before a question, the most alike next to it."""
    phrasings: Count = 0
    """How many rephrases that a fact brings are compared with a question beside its prompt."""
    wording: str = r"New Fact: {facts}\nPrompt: {question}"
    """How facts stand before a prompt, `\\n` for a line break; by default as published."""
    chat_wording: str = r"{facts}\n{question}"
    """How they stand before the words of a turn."""
    room: AtLeastOne | None = None
    """Tokens of the model's context that stay free for the answer: where facts would leave fewer, those that are less
    alike are left out, then all. None: a quarter of the context, 64 at most."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_wordings(self.wording, self.chat_wording)


def require_wordings(wording: str, chat_wording: str) -> None:
    """Raise UsageError for a wording without its two places, or one that goes on after the question."""
    for name, text in (("wording", wording), ("chat_wording", chat_wording)):
        if text.count(FACTS) != 1 or not text.endswith(QUESTION) or text.count(QUESTION) != 1:
            raise UsageError(
                f"setting {name} is {text!r}; it must have {FACTS} in it once and end with {QUESTION}, since the "
                "answer follows the question"
            )
