"""Facts taken back: what a model says of them once they are out of the solve, beside what it says of others.

A retracted fact leaves no trace of its own: ΔW is solved again from the base weights for the facts that remain, and is
byte for byte that of a store which only ever had those. What it then says of the retracted ones need not be the base
model's answer, for the same reason for which neighbours are not untouched: others were edited. So both are measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lifelong_edit.bench import Bench
from lifelong_edit.eval.metrics.verdicts import ask_unchanged, base_answers
from lifelong_edit.facts import Fact
from lifelong_edit.models import Question
from lifelong_edit.tasks import leading
from lifelong_edit.tracing.rows import draw

SAMPLE = 200
"""Unedited facts that are asked beside the retracted ones."""


@dataclass(frozen=True)
class AsBase:
    """How many questions were asked, and how many of them are answered as by the base model, by generation."""

    asked: int
    same: int


def as_base(bench: Bench, prompts: Sequence[tuple[Question, str | None]]) -> AsBase:
    """Of prompts with the answers to be expected, which fix how many tokens are looked at; the model as it stands."""
    answers = base_answers(bench.loaded, prompts)
    found = ask_unchanged(bench.loaded, [prompt for prompt, _ in prompts], answers)
    return AsBase(len(found), sum(result.generated for result in found))


def compared(bench: Bench, retracted: Sequence[Fact], live: Sequence[Fact]) -> dict[str, AsBase]:
    """`retracted`: the facts' own prompts. `unedited`: of the same relations, prompts that no live fact answers.

    The unedited ones are the retracted facts' own locality prompts and the preserved prompts that stand guard, which
    are rows of no solve; none that speaks of a subject which a live or a retracted fact is about.
    """
    about = {fact.about.casefold() for fact in (*retracted, *live)}
    relations = {fact.relation for fact in retracted}
    near = [probe for fact in retracted for probe in fact.locality if probe.subject is not None]
    near += [p for i, p in enumerate(bench.preserved.probes) if i in bench.preserved.guard and p.relation in relations]
    asked = {(leading(bench.loaded, p), p.target) for p in near if (p.subject or "").casefold() not in about}
    free = sorted(asked, key=str)
    chosen = [free[i] for i in draw(len(free), SAMPLE, "unedited", bench.settings.seed)]
    # Of a retracted fact only its answer's length is looked at.
    return {
        "retracted": as_base(bench, [(leading(bench.loaded, f), f.target_true or f.target) for f in retracted]),
        "unedited": as_base(bench, chosen) if chosen else AsBase(0, 0),
    }
