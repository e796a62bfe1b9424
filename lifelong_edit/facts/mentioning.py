"""Where a text speaks of a subject. No torch."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence


def mentions(text: str, subject: str | None) -> list[tuple[int, int]]:
    """Where a text mentions a subject: beginning and end of each, in characters; nowhere, where there is none.

    As words of its own, in any case, with any blanks between its words and in any Unicode normal form. Scripts that put
    no space between words, or whose particles cling to them, have no words of their own to go by.
    """
    words = ["".join(pieces) for pieces, _ in map(_decomposed, (subject or "").split())]
    if not words:
        return []
    pieces, origin = _decomposed(text)
    found = re.finditer(r"\s+".join(map(re.escape, words)), "".join(pieces), re.IGNORECASE)
    spans = [match.span() for match in found if _apart(pieces, *match.span())]
    return [(origin[start], origin[end - 1] + 1) for start, end in spans]


def put_in(text: str, subject: str | None, other: str) -> str:
    """A text with `other` wherever it mentions `subject`; the text itself where it does not."""
    for start, end in reversed(mentions(text, subject)):
        text = text[:start] + other + text[end:]
    return text


def _apart(pieces: Sequence[str], start: int, end: int) -> bool:
    """Whether a stretch of decomposed text is no part of a longer word at either of its ends."""
    if end < len(pieces) and unicodedata.combining(pieces[end]):
        return False  # "Jose" is no part of "José"
    outer = ((start - 1, start), (end, end - 1))
    return not any(
        0 <= outside < len(pieces) and _of_words(pieces[outside]) and not _CLINGING.match(pieces[inside])
        for outside, inside in outer
    )


def _of_words(character: str) -> bool:
    return (character.isalnum() or character == "_") and not _CLINGING.match(character)


_CLINGING = re.compile(
    "["
    r"\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Tibetan; Burmese; Khmer
    r"\u1100-\u11ff\u3005-\u30ff\u3400-\u9fff\uac00-\ud7ff"  # Korean, Japanese, Chinese
    r"\uf900-\ufaff\U00020000-\U0003ffff"
    "]"
)


def _decomposed(text: str) -> tuple[list[str], list[int]]:
    """The characters of a text in normal form D, and from which of its own each of them comes."""
    if text.isascii():
        return list(text), list(range(len(text)))
    pieces = [(piece, i) for i, character in enumerate(text) for piece in unicodedata.normalize("NFD", character)]
    return [piece for piece, _ in pieces], [i for _, i in pieces]
