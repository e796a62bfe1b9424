"""Whether a model still holds a conversation: no empty answers, none that goes round in circles, none without end."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

from lifelong_edit.bench import Bench
from lifelong_edit.errors import StepRefusedError
from lifelong_edit.facts import general_prompts
from lifelong_edit.models import BASE, Generation, LoadedModel, Question
from lifelong_edit.tasks import question_in, task_of

ASKED = 8
"""Turns that are put to the model."""
TOKENS = 64
"""An answer is looked at up to here."""
SHORT = 32
"""An answer of the base model that ends before this many tokens has to end before TOKENS of the edited one."""
ALLOWED = 0.25
"""The share of answers that were sound in the base model and may break."""
_CYCLE, _ROUNDS, _LEAST = 8, 4, 12

_BASE: WeakKeyDictionary[Bench, tuple[list[Question], list[Generation]]] = WeakKeyDictionary()


def require_sound(bench: Bench) -> dict[str, int]:
    """How many turns were `asked` of the model as it stands, and to how many its answer is `broken`.

    The turns are preserved prompts that stand guard, which are rows of no solve; general ones where there are none.
    Only those count that the base model answers soundly. Raises StepRefusedError where more than ALLOWED are broken.
    """
    questions, before = _as_base(bench)
    after = bench.task.answer(bench.loaded, questions, TOKENS)
    sound = [(old, new) for old, new in zip(before, after, strict=True) if not _is_broken(bench.loaded, old)]
    broken = sum(_is_broken(bench.loaded, new) or _lost_its_end(old, new) for old, new in sound)
    if broken > ALLOWED * len(sound):
        raise StepRefusedError(
            f"the batch was refused: {broken} of {len(sound)} answers in conversations would be empty, repeat "
            "themselves or not end, and the base model's do not; make batches smaller or edit fewer facts"
        )
    return {"asked": len(sound), "broken": broken}


def _as_base(bench: Bench) -> tuple[list[Question], list[Generation]]:
    """The turns, and what the base model says to them; asked once per bench."""
    if bench not in _BASE:
        kept = bench.preserved
        questions = [kept.question(i) for i in kept.guards(frozenset()) if i in kept.chat][:ASKED]
        if not questions:
            general = general_prompts()
            chosen = general[:: len(general) // ASKED][:ASKED]
            questions = [question_in(bench.loaded, "chat", probe) for probe in chosen]
        with bench.loaded.at(BASE):
            _BASE[bench] = questions, task_of(bench.loaded).answer(bench.loaded, questions, TOKENS)
    return _BASE[bench]


def _is_broken(loaded: LoadedModel, said: Generation) -> bool:
    """Whether an answer has no letter or digit in it, or goes round in a circle at its end."""
    text: str = loaded.tokenizer.decode(list(said.ids), skip_special_tokens=True)
    return not any(map(str.isalnum, text)) or goes_round(said.ids)


def _lost_its_end(before: Generation, after: Generation) -> bool:
    return before.stopped and len(before.ids) < SHORT and not after.stopped


def goes_round(ids: Sequence[int]) -> bool:
    """Whether the last tokens are one stretch of at most eight, four times over: twelve tokens at least."""
    for length in range(1, _CYCLE + 1):
        rounds = max(_ROUNDS, -(-_LEAST // length))
        tail = list(ids[-length * rounds :])
        if len(tail) == length * rounds and tail == tail[:length] * rounds:
            return True
    return False
