"""CounterFact's comparisons: is the new answer more probable than the true one, and by how much.

Success and magnitude as in ROME and MEMIT (Meng et al., arXiv 2202.05262, section 3.4, and 2210.07229): ES and EM on a
fact's prompt, PS and PM on its paraphrases, NS and NM on neighbours, where it is the true answer that has to be more
probable. The probability of an answer is exp of the mean log-probability of its tokens, and figures are means over the
prompts of a fact first and over facts then, as in the released code (`test_batch_prediction` and `summarize.py`).
A comparison is easier than to answer: the new answer need not be what the model says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lifelong_edit.eval.metrics.answers import mean_log_probabilities
from lifelong_edit.eval.metrics.intervals import Estimate, estimates
from lifelong_edit.models import LoadedModel, Question
from lifelong_edit.tasks import task_of

KINDS = ("E", "P", "N")
"""Efficacy on prompts, paraphrases, neighbourhood."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """Two answers after one prompt. wanted: the new one, at a neighbour the true one."""

    prompt: Question
    wanted: str
    other: str


@dataclass(frozen=True)
class Compared:
    """How a comparison came out. success: the wanted answer is the more probable; magnitude: by how much."""

    success: bool
    magnitude: float


def outcome(wanted: float, other: float) -> Compared:
    """The outcome from the mean log-probabilities per token, in nats, of the two answers."""
    return Compared(wanted > other, float(np.exp(wanted) - np.exp(other)))


def compare(loaded: LoadedModel, comparisons: Iterable[Comparison], batch_size: int = 64) -> dict[Comparison, Compared]:
    """The outcome of each distinct comparison. Raises BadInputError for an empty answer or too long a text."""
    asked = list(dict.fromkeys(comparisons))
    pairs = dict.fromkeys(pair for c in asked for pair in ((c.prompt, c.wanted), (c.prompt, c.other)))
    encoded = [task_of(loaded).encode(loaded, *pair) for pair in pairs]
    logged = dict(zip(pairs, mean_log_probabilities(loaded, encoded, batch_size).tolist(), strict=True))
    return {c: outcome(logged[c.prompt, c.wanted], logged[c.prompt, c.other]) for c in asked}


def success_and_magnitude(
    facts: Sequence[Mapping[str, Sequence[Comparison]]], results: Mapping[Comparison, Compared], seed: int = 0
) -> dict[str, Estimate]:
    """ES, EM, PS, PM, NS, NM over facts. facts: of each its comparisons by kind (see KINDS); one without any of a kind
    is none of those that the figure is over."""
    found: dict[str, Estimate] = {}
    for kind in KINDS:
        asked = [fact[kind] for fact in facts if fact.get(kind)]
        means = [np.mean([(results[c].success, results[c].magnitude) for c in part], axis=0) for part in asked]
        both = estimates(np.array(means).reshape(-1, 2), range(len(means)), seed)
        found |= {kind + "S": both[0], kind + "M": both[1]}
    return found
