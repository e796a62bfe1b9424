"""The judge of a step before it is committed: did it take, is it finite, does the model still model language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch

from lifelong_edit.editors.ridge.batch import Bench, Proposal, SolveState
from lifelong_edit.errors import StepRefusedError
from lifelong_edit.facts import Fact
from lifelong_edit.models import LoadedModel, encode, generate
from lifelong_edit.tasks.causal.perplexity import perplexity_of
from lifelong_edit.tasks.causal.verdicts import MARGIN, continuation_text, judge

_BASE: WeakKeyDictionary[Bench, float] = WeakKeyDictionary()


def check(bench: Bench, state: SolveState, proposal: Proposal, facts: Sequence[Fact]) -> Mapping[str, Any]:
    """Judge a proposal while the model stands at the weights that it leads to.

    Returns figures for the log: how many facts were `asked`, how many have `taken` (greedy generation, see
    `eval.metrics.judge`), digests of the `untaken` ones, `perplexity` on the store's sample and `base_perplexity`.

    Raises `StepRefusedError` where a weight is not finite, where perplexity is beyond `gate_perplexity` times the
    base model's, and where a smaller share than `gate_min_taken` has taken.
    """
    settings, loaded = bench.settings, bench.loaded
    _require_finite(loaded)
    base = base_perplexity(bench)
    found = perplexity_of(loaded, bench.guard_windows.to(loaded.device))
    if not found <= settings.gate_perplexity * base:  # NaN is beyond every bound
        raise StepRefusedError(
            f"the batch was refused: perplexity on the store's sample rises to {found:.1f}, allowed is "
            f"{settings.gate_perplexity:g} times the base model's {base:.1f}; make batches smaller or edit fewer facts"
        )
    taken = answers_taken(loaded, facts)
    share = sum(taken) / len(taken) if taken else 1.0
    if share < settings.gate_min_taken:
        raise StepRefusedError(
            f"the batch was refused: {sum(taken)} of its {len(taken)} facts have taken, the store asks for a share of "
            f"{settings.gate_min_taken:g}; make batches smaller"
        )
    return {
        "asked": len(taken),
        "taken": sum(taken),
        "untaken": [fact.digest for fact, took in zip(facts, taken, strict=True) if not took],
        "perplexity": found,
        "base_perplexity": base,
    }


def base_perplexity(bench: Bench) -> float:
    """The base model's perplexity on the store's sample, measured once per bench."""
    if bench not in _BASE:
        with bench.loaded.at_base():
            _BASE[bench] = perplexity_of(bench.loaded, bench.guard_windows.to(bench.loaded.device))
    return _BASE[bench]


def answers_taken(loaded: LoadedModel, facts: Sequence[Fact]) -> list[bool]:
    """Whether the model answers each fact's prompt with its target, by greedy generation."""
    lengths = []
    for fact in facts:
        encoded = encode(loaded.tokenizer, fact.prompt, fact.target)
        lengths.append(len(encoded.answer) + MARGIN)
    generations = generate(loaded, [fact.prompt for fact in facts], lengths)
    return [
        judge(fact.prompt, fact.target, continuation_text(loaded, fact.prompt, found), found.stopped)[0]
        for fact, found in zip(facts, generations, strict=True)
    ]


def _require_finite(loaded: LoadedModel) -> None:
    for module in loaded.modules:
        weight = loaded.model.get_submodule(module.name).weight
        if not bool(torch.isfinite(weight).all()):
            raise StepRefusedError(
                f"the batch was refused: the weights of {module.name} would not be finite; make batches smaller, or "
                "use a wider dtype"
            )
