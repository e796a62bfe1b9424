"""Where in a prompt the answer stands: at its mask, or behind it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from lifelong_edit.errors import BadInputError
from lifelong_edit.models.encoding import separator

MASK = "[MASK]"
"""Marks the place of the answer in a prompt, whatever the tokenizer's own mark is; several in a row are one place."""


@dataclass(frozen=True)
class Gap:
    """A text with a place for an answer. marks: how many masks are written there, one where none is."""

    before: str
    after: str
    marks: int = 1

    @property
    def text(self) -> str:
        """The text around the gap, without anything in it."""
        return self.before + self.after


def gap_in(prompt: str, mask: str = MASK) -> Gap:
    """The place of the answer in a prompt: at its masks, else behind it, with a full stop behind that.

    mask: the tokenizer's own mark, which may stand in a prompt as well. Raises BadInputError for masks in two places.
    """
    mark = f"(?:{re.escape(MASK)}|{re.escape(mask)})"
    places = list(re.finditer(rf"{mark}(?:\s*{mark})*", prompt))
    if not places:
        prompt = prompt.rstrip()
        return Gap(prompt + separator(prompt, "a"), ".")
    if len(places) > 1:
        raise BadInputError(
            f"the prompt {prompt[:60]!r} has masks in {len(places)} places, expected one place, of one mask or several "
            "in a row; ask for each by itself"
        )
    at = places[0]
    return Gap(prompt[: at.start()], prompt[at.end() :], len(re.findall(mark, at[0])))


def filling(tokenizer: Any, gap: Gap, answer: str) -> list[int]:
    """The tokens of an answer as the tokenizer makes them in its place.

    A slow tokenizer cannot tell which token stands where: of it they are those of the answer by itself.
    """
    if not tokenizer.is_fast:
        alone: list[int] = tokenizer(answer, add_special_tokens=False, verbose=False)["input_ids"]
        return alone
    text, start = gap.before + answer + gap.after, len(gap.before)
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    spans = zip(found["input_ids"], found["offset_mapping"], strict=True)
    return [token for token, (first, last) in spans if first < start + len(answer) and last > start]
