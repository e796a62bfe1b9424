"""Keys at all tokens of the preserved prompts: what a matrix in the lower layers sees of a question as it is read.

A matrix that is edited at the subject is met by every token of every text. Holding only the subject tokens of preserved
prompts leaves the rest of their words free to move, and what moves there moves their answers: on SmolLM2-135M, 50 facts
in one batch, locality was .57 with nothing held, .68 with the subjects' keys and .80 with those of all tokens.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from lifelong_edit.bench import Bench
from lifelong_edit.facts import Probe
from lifelong_edit.models import BASE, Encoded, LoadedModel, by_length
from lifelong_edit.numerics.devices import to_solve
from lifelong_edit.numerics.lowrank import Gram, LowRank, joined
from lifelong_edit.numerics.textgram import TextGrams, gram_sum, rank_for
from lifelong_edit.tasks import questions_of, task_of
from lifelong_edit.tracing.trace import recording

AROUND = "search/around/"


def around_grams(
    loaded: LoadedModel, probes: Sequence[Probe], micro_batch: int, gram_rank: int | None
) -> dict[str, npt.NDArray[Any]]:
    """Σ kᵀk over all tokens of the prompts, by module, as arrays to be fixed; none without prompts."""
    if not probes:
        return {}
    sums = {m.name: gram_sum(m.d_in, rank_for(m.d_in, gram_rank), loaded.desk(m.name)) for m in loaded.modules}
    for name, keys in token_keys(loaded, probes, micro_batch):
        sums[name].add(keys)
    return {AROUND + n: array for name, found in sums.items() for n, array in found.arrays(name, 1).items()}


def encoded_questions(loaded: LoadedModel, probes: Iterable[Probe]) -> list[Encoded]:
    """Prompts in each form of the model, without answers."""
    task = task_of(loaded)
    return [Encoded.of(task.encode_question(loaded, q)) for probe in probes for q in questions_of(loaded, probe)]


def token_keys(loaded: LoadedModel, probes: Sequence[Probe], micro_batch: int) -> Iterator[tuple[str, Tensor]]:
    """Of each module the keys at all tokens of prompts, (n, d_in) float32 in the base model, some prompts at a time.

    Of prompts in each form of the model.
    """
    task, asked = task_of(loaded), encoded_questions(loaded, probes)
    for chosen in by_length([len(e.ids) for e in asked], micro_batch):
        batch = task.collate(loaded, [asked[i] for i in chosen])
        with loaded.at(BASE), torch.no_grad(), recording(loaded, gradients=False) as (inputs, _):
            task.read(loaded, batch.ids, batch.mask)
        for name, keys in inputs.items():
            found = keys.reshape(*batch.mask.shape, -1)[batch.mask.bool().to(keys.device)]
            yield name, found.to(loaded.desk(name)).float()


class Around:
    """These grams as `init` fixed them."""

    def __init__(self, bench: Bench) -> None:
        fixed = {n.removeprefix(AROUND): a for n, a in bench.fixed.rule.items() if n.startswith(AROUND)}
        self._bench = bench
        self._grams = TextGrams(fixed, {n: bench.loaded.desk(n) for n in bench.names}) if fixed else None

    def add_to(self, grams: dict[str, Gram], weight: float, subjects: Container[str]) -> None:
        """Add weight · Σ kᵀk to the gram of every module, (d_in, d_in) float64: in place, or by its rows.

        Prompts about one of the edited `subjects` (case-folded) are taken out of the sum: what they say may change.
        """
        if self._grams is None or not weight:
            return
        for name, gram in grams.items():
            if isinstance(gram, LowRank):
                part = self._grams.low_rank(name, weight)
                assert part is not None  # of the width of the text's, and so kept as that is
                grams[name] = joined(gram, part)
            else:
                self._grams.add_to(gram, name, weight)
        probes = self._bench.preserved.probes
        gone = dict.fromkeys(p for p in probes if p.subject is not None and p.subject.casefold() in subjects)
        for name, keys in token_keys(self._bench.loaded, list(gone), self._bench.settings.micro_batch):
            exact, gram = to_solve(keys), grams[name]
            if isinstance(gram, LowRank):
                grams[name] = gram.minus(exact * weight**0.5)
            else:
                gram.addmm_(exact.T, exact, alpha=-weight)
