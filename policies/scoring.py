"""How probable it is that two facts about one subject ask for the same thing, from numbers that need no model."""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from lifelong_edit.errors import BadInputError, StoreDamagedError
from lifelong_edit.facts import Fact, mentions, put_in
from lifelong_edit.numerics.logistic import Logistic
from lifelong_edit.policies.identity import normalise

FEATURES = ("nearness", "wording")
"""nearness: cosine of the conflict keys of the two prompts. wording: the largest cosine of the counts of character
n-grams of a phrasing of one and a phrasing of the other, the subject taken out of both.

What added less than a hundredth of the area under the curve when they were chosen: keys of higher modules, the last
hidden state, whether two phrasings end in the same word, n-grams weighted by how rare they are. How much nearer the two
are than the next fact added nothing.
"""
NGRAMS = (3, 4, 5)
CONFLICTS = "conflicts.json"
"""The file in which `train` leaves the scorer that it fitted."""
CERTAIN = 0.999
"""The most that a scorer says: 1 is for what is equal in so many words."""
_HOLE = "\x00"


class Scorer(Logistic, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The probability that two facts about one subject ask for the same thing, where as many do as do not.

    threshold: from which probability on a pair is one; see `conflict_measuring.threshold_of` for how it was chosen.
    """

    threshold: float

    def probability(self, new: Fact, old: Fact, cosine: float) -> float:
        """Of one pair, 0 to `CERTAIN`. cosine: of the conflict keys of the two prompts."""
        return min(float(self.probabilities(np.array([features_of(new, old, cosine)]))[0]), CERTAIN)


def features_of(new: Fact, old: Fact, cosine: float) -> tuple[float, float]:
    """The features of a pair, in the order of `FEATURES`."""
    subjects = tuple(sorted({new.about, old.about}, key=lambda subject: (-len(subject), subject)))
    ours, theirs = ([_grams(text, subjects) for text in (f.prompt, *f.rephrases)] for f in (new, old))
    return cosine, max(_cosine(one, other) for one in ours for other in theirs)


def same_subject(new: Fact, old: Fact) -> bool:
    """Whether two facts are about the same: their subjects are equal, or each prompt mentions the other's subject.

    Keys alone cannot tell: those of two subjects with the same relation and answer lie as near each other as those of
    two phrasings of one fact.
    """
    if normalise(new.about) == normalise(old.about):
        return True
    return bool(mentions(old.prompt, new.about)) and bool(mentions(new.prompt, old.about))


def read_scorer(path: Path) -> Scorer:
    """The scorer of a file. Raises BadInputError where it holds something else."""
    try:
        return _decoded(path.read_bytes())
    except (OSError, msgspec.MsgspecError, ValueError) as error:
        raise BadInputError(
            f"{path} holds no scorer of conflicts of this release ({error}); expected what `lifelong-edit train` writes"
        ) from error


def scorer_array(scorer: Scorer) -> npt.NDArray[np.uint8]:
    """A scorer as an array, to be stored among what `init` fixes."""
    return np.frombuffer(msgspec.json.encode(scorer), np.uint8)


def as_scorer(array: npt.NDArray[Any]) -> Scorer:
    """The inverse of `scorer_array`. Raises StoreDamagedError where the array holds no scorer."""
    try:
        return _decoded(array.tobytes())
    except (msgspec.MsgspecError, ValueError) as error:
        raise StoreDamagedError(f"the store's scorer of conflicts cannot be read ({error})") from error


def _decoded(data: bytes) -> Scorer:
    found = msgspec.json.decode(data, type=Scorer)
    if found.features != FEATURES:
        raise ValueError(f"it has the features {', '.join(found.features)}, expected {', '.join(FEATURES)}")
    return found


@functools.lru_cache(maxsize=4096)  # a fact in force meets many new ones
def _grams(text: str, subjects: tuple[str, ...]) -> Counter[str]:
    """The n-grams of a phrasing without its subject: what is asked of it.

    subjects: the longer one first, which may hold the other.
    """
    for subject in subjects:
        text = put_in(text, subject, _HOLE)
    text = normalise(text)
    return Counter(text[i : i + n] for n in NGRAMS for i in range(len(text) - n + 1))


def _cosine(one: Counter[str], other: Counter[str]) -> float:
    product = sum(count * other[gram] for gram, count in one.items())
    squares = [sum(count * count for count in grams.values()) for grams in (one, other)]
    return float(product / np.sqrt(squares[0] * squares[1])) if all(squares) else float(one == other)
