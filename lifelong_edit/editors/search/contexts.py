"""Beginnings of sentences to stand before prompts, drawn at `init` and fixed with it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from lifelong_edit.models import LoadedModel
from lifelong_edit.tasks import task_of
from lifelong_edit.tracing.rows import draw

CONTEXTS = "search/contexts"
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_WORDS = re.compile(r"[A-Z][A-Za-z',\- ]+[.!?]?")
OPENING = 3
"""Words of a sentence that the model goes on from."""


def drawn_contexts(
    loaded: LoadedModel, text: Sequence[str], count: int, tokens: int, seed: int
) -> dict[str, npt.NDArray[np.uint8]]:
    """`count` texts of about `tokens` tokens to stand before a prompt, as an array to be fixed; none without text.

    Half are beginnings of sentences of the text, half such beginnings of three words with what the model goes on to
    say. Each ends with a full stop, as a sentence that is over: what follows is new.
    """
    sentences = [sentence for sentence in sentences_in(text) if _usable(sentence)]
    chosen = [sentences[i] for i in draw(len(sentences), count, "contexts", seed)]
    own, opened = chosen[::2], [" ".join(s.split()[:OPENING]) for s in chosen[1::2]]
    said = task_of(loaded).answer(loaded, opened, max(1, tokens - OPENING))
    grown = [f"{start}{loaded.tokenizer.decode(list(g.ids))}" for start, g in zip(opened, said, strict=True)]
    found = [_ended(_cut(loaded, text, tokens)) for text in (*own, *grown)]
    return {CONTEXTS: np.frombuffer(msgspec.json.encode(found), np.uint8)}


def contexts_of(fixed: Mapping[str, npt.NDArray[np.uint8]]) -> list[str]:
    """The contexts that `init` fixed; none where it had no text to draw them from."""
    return msgspec.json.decode(fixed[CONTEXTS].tobytes(), type=list[str]) if CONTEXTS in fixed else []


def sentences_in(text: Sequence[str]) -> list[str]:
    """The sentences of lines of text, each once, in the order of their letters."""
    return sorted({s for line in text for s in _SENTENCE.split(line.strip()) if s})


def _usable(sentence: str) -> bool:
    return _WORDS.fullmatch(sentence) is not None and len(sentence.split()) > OPENING


def _cut(loaded: LoadedModel, text: str, tokens: int) -> str:
    """The first line of a text, cut to a number of tokens."""
    ids: list[int] = loaded.tokenizer(text.strip().split("\n")[0], add_special_tokens=False)["input_ids"]
    cut: str = loaded.tokenizer.decode(ids[:tokens], skip_special_tokens=True)
    return cut


def _ended(text: str) -> str:
    return f"{text.strip().rstrip('.,;:!?')}. "
