"""The judge of a step before it is committed: did it take, is it finite, does the model still model language."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch

from lifelong_edit.bench import Bench, State
from lifelong_edit.editors.contract import Change
from lifelong_edit.errors import StepRefusedError
from lifelong_edit.facts import Fact
from lifelong_edit.judging.talk import require_sound
from lifelong_edit.models import BASE, Form, LoadedModel
from lifelong_edit.tasks import Asked, Verdict, question_in, task_of

_BASE: WeakKeyDictionary[Bench, float] = WeakKeyDictionary()
_ERRORS: WeakKeyDictionary[Bench, float] = WeakKeyDictionary()


def check(bench: Bench, state: State, change: Change, facts: Sequence[Fact]) -> Mapping[str, Any]:
    """Judge a proposed change while the model stands at the state that it leads to.

    Returns figures for the log: how many facts were `asked`, how many have `taken` (greedy generation, see
    `Task.judge`), digests of the `untaken` ones, `perplexity` on the store's sample and `base_perplexity`. A fact has
    taken if it did in each form of the store. With turns among them also `forms`, how many in each, and `chat`, how
    whole conversations are (`judging.talk`).

    Raises `StepRefusedError` where a weight is not finite, where perplexity is beyond `allowed_perplexity` times the
    base model's, where conversations break, and where a smaller share than `gate_min_taken` has taken.
    """
    settings, loaded = bench.settings, bench.loaded
    _require_finite(loaded)
    base = base_perplexity(bench)
    found = bench.task.health(loaded, bench.guard_windows)
    allowed = allowed_perplexity(bench)
    if not found <= allowed * base:  # NaN is beyond every bound
        raise StepRefusedError(
            f"the batch was refused: perplexity on the store's sample rises to {found:.1f}, allowed is "
            f"{allowed:.3g} times the base model's {base:.1f}; make batches smaller or edit fewer facts"
        )
    talks = require_sound(bench) if "chat" in loaded.forms.names else None
    by_form = verdicts(loaded, facts)
    taken = [all(verdict.right for verdict in told) for told in zip(*by_form.values(), strict=True)]
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
        **({"forms": _of_forms(by_form), "chat": talks} if "chat" in by_form else {}),
    }


def _of_forms(found: Mapping[Form, Sequence[Verdict]]) -> dict[str, dict[str, int]]:
    """Facts whose answer is right, and whose answer has the target anywhere in it, by form."""
    return {
        form: {"taken": sum(v.right for v in told), "contained": sum(v.contained for v in told)}
        for form, told in found.items()
    }


def base_perplexity(bench: Bench) -> float:
    """The base model's perplexity on the store's sample, measured once per bench."""
    if bench not in _BASE:
        with bench.loaded.at(BASE):
            _BASE[bench] = bench.task.health(bench.loaded, bench.guard_windows)
    return _BASE[bench]


def allowed_perplexity(bench: Bench) -> float:
    """How many times the base model's perplexity the gate allows: `gate_perplexity`, or less where noise is less.

    Noise is how far the base model's own perplexity would be another on another sample of the same size: exp of
    `gate_noise` standard errors of the mean loss over the sample's windows.
    """
    settings = bench.settings
    if not settings.gate_noise or len(bench.guard_windows) < 2:
        return settings.gate_perplexity
    return min(settings.gate_perplexity, math.exp(settings.gate_noise * _base_error(bench)))


def _base_error(bench: Bench) -> float:
    """The standard error of the base model's mean loss on the store's sample, measured once per bench."""
    if bench not in _ERRORS:
        with bench.loaded.at(BASE):
            losses = [math.log(bench.task.health(bench.loaded, window[None])) for window in bench.guard_windows]
        _ERRORS[bench] = statistics.stdev(losses) / math.sqrt(len(losses))
    return _ERRORS[bench]


def answers_taken(loaded: LoadedModel, facts: Sequence[Fact]) -> list[bool]:
    """Whether the model answers each fact's prompt with its target, in every form, by greedy generation."""
    return right_answers(loaded, [(fact, fact.answer) for fact in facts])


def right_answers(loaded: LoadedModel, pairs: Sequence[tuple[Asked, str]]) -> list[bool]:
    """Whether the model gives each wanted answer, in every form, by greedy generation."""
    by_form = _judged(loaded, pairs).values()
    return [all(verdict.right for verdict in found) for found in zip(*by_form, strict=True)]


def verdicts(loaded: LoadedModel, facts: Sequence[Fact]) -> dict[Form, list[Verdict]]:
    """What the model says to each fact's prompt, by form."""
    return _judged(loaded, [(fact, fact.answer) for fact in facts])


def _judged(loaded: LoadedModel, pairs: Sequence[tuple[Asked, str]]) -> dict[Form, list[Verdict]]:
    task, found = task_of(loaded), dict[Form, list[Verdict]]()
    for form in loaded.forms.names:
        asked = [(question_in(loaded, form, of), answer) for of, answer in pairs]
        lengths = [len(task.encode(loaded, *pair).answer) + task.margin(pair[0]) for pair in asked]
        said = task.answer(loaded, [question for question, _ in asked], lengths)
        found[form] = [task.judge(loaded, *pair, new) for pair, new in zip(asked, said, strict=True)]
    return found


def _require_finite(loaded: LoadedModel) -> None:
    for module in loaded.modules:
        weight = loaded.model.get_submodule(module.name).weight
        if not bool(torch.isfinite(weight).all()):
            raise StepRefusedError(
                f"the batch was refused: the weights of {module.name} would not be finite; make batches smaller, or "
                "use a wider dtype"
            )
