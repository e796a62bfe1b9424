"""The judge of a step before it is committed: did it take, is it finite, does the model still model language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch

from lifelong_edit.bench import Bench, State
from lifelong_edit.editors.contract import Change
from lifelong_edit.errors import StepRefusedError
from lifelong_edit.facts import Fact
from lifelong_edit.models import BASE, LoadedModel
from lifelong_edit.tasks import task_of

_BASE: WeakKeyDictionary[Bench, float] = WeakKeyDictionary()


def check(bench: Bench, state: State, change: Change, facts: Sequence[Fact]) -> Mapping[str, Any]:
    """Judge a proposed change while the model stands at the state that it leads to.

    Returns figures for the log: how many facts were `asked`, how many have `taken` (greedy generation, see
    `Task.judge`), digests of the `untaken` ones, `perplexity` on the store's sample and `base_perplexity`.

    Raises `StepRefusedError` where a weight is not finite, where perplexity is beyond `gate_perplexity` times the
    base model's, and where a smaller share than `gate_min_taken` has taken.
    """
    settings, loaded = bench.settings, bench.loaded
    _require_finite(loaded)
    base = base_perplexity(bench)
    found = bench.task.health(loaded, bench.guard_windows)
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
        with bench.loaded.at(BASE):
            _BASE[bench] = bench.task.health(bench.loaded, bench.guard_windows)
    return _BASE[bench]


def answers_taken(loaded: LoadedModel, facts: Sequence[Fact]) -> list[bool]:
    """Whether the model answers each fact's prompt with its target, by greedy generation."""
    task = task_of(loaded)
    lengths = [len(task.encode(loaded, fact.prompt, fact.answer).answer) + task.margin for fact in facts]
    said = task.answer(loaded, [fact.prompt for fact in facts], lengths)
    return [task.judge(loaded, fact.prompt, fact.answer, found).right for fact, found in zip(facts, said, strict=True)]


def _require_finite(loaded: LoadedModel) -> None:
    for module in loaded.modules:
        weight = loaded.model.get_submodule(module.name).weight
        if not bool(torch.isfinite(weight).all()):
            raise StepRefusedError(
                f"the batch was refused: the weights of {module.name} would not be finite; make batches smaller, or "
                "use a wider dtype"
            )
