"""The forms in which a model is asked: as plain text to be continued, or in turns of a conversation. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

Form = Literal["plain", "chat"]
Role = Literal["user", "assistant"]


@dataclass(frozen=True)
class Turn:
    """A question as the last turn of a conversation, put through the chat template of a model.

    system: the system prompt; None: the template's own default. before: earlier turns, each with who speaks.
    """

    text: str
    system: str | None = None
    before: tuple[tuple[Role, str], ...] = ()


Question = str | Turn
"""What a model is asked: a text that it continues, or a turn that it answers."""
SameQuestion = TypeVar("SameQuestion", str, Turn, Question)
"""A question of either kind, which stays of its kind."""


@dataclass(frozen=True)
class Forms:
    """The forms in which a store's model is taught and asked, the leading one first; `init` fixes them.

    system: the system prompt of its turns; None: the template's own default.
    """

    names: tuple[Form, ...] = ("plain",)
    system: str | None = None


PLAIN = Forms()
"""Plain text alone."""
