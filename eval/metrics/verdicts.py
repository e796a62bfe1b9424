"""What an edited model answers: efficacy, generality and locality, teacher-forced and by generation.

Efficacy, generality (paraphrases) and locality (specificity) as in ROME and MEMIT (Meng et al.,
arXiv 2202.05262 and 2210.07229); teacher-forced, all answer tokens together, as in MEND and MALMEN
(arXiv 2110.11309 and 2311.04661). Teacher forcing overrates an edit, because it shows the model the
beginning of the answer (Yang et al., "The Mirage of Model Editing", arXiv 2502.11177): hence generation beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from lifelong_edit.eval.metrics.answers import continued
from lifelong_edit.models import BASE, Encoded, LoadedModel, Question, by_length
from lifelong_edit.tasks import task_of

# Tokens of the base model's answer that have to stay, where a locality prompt comes without a target.
UNKNOWN_LENGTH = 5

Pair = tuple[Question, str]
"""What is asked, a prompt or a turn, and the answer that is wanted."""


@dataclass(frozen=True)
class Result:
    """How one question came out. natural: by generation, and the answer was followed by the end of a sentence.

    contained: by generation, and the wanted answer stands anywhere in what was said.
    """

    teacher_forced: bool
    generated: bool
    natural: bool
    answer: str
    contained: bool = False


@dataclass(frozen=True)
class Score:
    """Shares of questions that came out right, between 0 and 1; NaN where there was none."""

    count: int
    teacher_forced: float
    generated: float
    natural: float


def summarise(results: Sequence[Result]) -> Score:
    """The shares over a set of results."""
    count = len(results)
    totals = [sum(getattr(r, name) for r in results) for name in ("teacher_forced", "generated", "natural")]
    return Score(count, *(total / count if count else float("nan") for total in totals))


def ask_pairs(loaded: LoadedModel, pairs: Sequence[Pair], batch_size: int = 64) -> list[Result]:
    """Whether the model gives the wanted answers: efficacy on prompts, generality on paraphrases.

    Teacher-forced: every answer token is the most probable one after those before it.
    By generation: greedy, the target's tokens and `Task.margin` more; see `Task.judge`.
    Raises BadInputError for an empty target or a prompt longer than the context.
    """
    task = task_of(loaded)
    encoded = [task.encode(loaded, prompt, target) for prompt, target in pairs]
    predicted = predict_answers(loaded, encoded, batch_size)
    lengths = [len(e.answer) + task.margin(question) for e, (question, _) in zip(encoded, pairs, strict=True)]
    said = task.answer(loaded, [prompt for prompt, _ in pairs], lengths, batch_size)
    results = []
    for (prompt, target), e, guess, new in zip(pairs, encoded, predicted, said, strict=True):
        verdict = task.judge(loaded, prompt, target, new)
        results.append(Result(guess == e.answer, verdict.right, verdict.ended, verdict.text, verdict.contained))
    return results


def ask_any(
    loaded: LoadedModel, pairs: Sequence[Pair], aliases: Mapping[Pair, Sequence[str]], batch_size: int = 64
) -> list[Result]:
    """As `ask_pairs`, of questions to some of which other answers are as right: a question is right if one of them is.

    Only what came out wrong is asked for again. The answer is that of the first that was right, else the first one.
    """
    found = ask_pairs(loaded, pairs, batch_size)
    again = [
        (i, (question, alias))
        for i, (question, target) in enumerate(pairs)
        if not (found[i].generated and found[i].teacher_forced)
        for alias in aliases.get((question, target), ())
    ]
    others = ask_pairs(loaded, [pair for _, pair in again], batch_size) if again else []
    for (i, _), other in zip(again, others, strict=True):
        found[i] = _either(found[i], other)
    return found


def _either(one: Result, other: Result) -> Result:
    return Result(
        one.teacher_forced or other.teacher_forced,
        one.generated or other.generated,
        one.natural or other.natural,
        other.answer if other.generated and not one.generated else one.answer,
        one.contained or other.contained,
    )


def base_answers(
    loaded: LoadedModel, probes: Sequence[tuple[Question, str | None]], batch_size: int = 64
) -> list[tuple[int, ...]]:
    """What the untouched base model says to locality prompts, as token ids, whatever `loaded`'s shifts are.

    probes: prompts, each with the answer to be expected, which only fixes how many tokens are looked at;
    UNKNOWN_LENGTH where it is None. A token that ends the text is the last of the answer.
    """
    task = task_of(loaded)
    with loaded.at(BASE):
        lengths = [
            task.room(prompt, UNKNOWN_LENGTH) if target is None else len(task.encode(loaded, prompt, target).answer)
            for prompt, target in probes
        ]
        return [g.with_end for g in task.answer(loaded, [prompt for prompt, _ in probes], lengths, batch_size)]


def ask_unchanged(
    loaded: LoadedModel, prompts: Sequence[Question], answers: Sequence[Sequence[int]], batch_size: int = 64
) -> list[Result]:
    """Locality: whether the model says, token by token, what the base model said.

    answers: from `base_answers`. Teacher-forced on them, and by generation of as many tokens. In exact
    arithmetic the two agree. natural: the answer is right and ends the text.
    """
    predicted = predict_answers(loaded, continued(loaded, prompts, answers), batch_size)
    task = task_of(loaded)
    new = task.answer(loaded, prompts, [len(answer) for answer in answers], batch_size)
    return [
        Result(
            guess == tuple(answer),
            g.with_end == tuple(answer),
            g.stopped and g.with_end == tuple(answer),
            task.text(loaded, prompt, g),
        )
        for prompt, answer, guess, g in zip(prompts, answers, predicted, new, strict=True)
    ]


@torch.inference_mode()
def predict_answers(loaded: LoadedModel, encoded: Sequence[Encoded], batch_size: int = 64) -> list[tuple[int, ...]]:
    """The most probable token at each answer position, given the true ones before it: one tuple per sequence."""
    task = task_of(loaded)

    def work(chosen: list[int]) -> list[tuple[int, ...]]:
        part = [encoded[i] for i in chosen]
        best = task.logits(loaded, task.collate(loaded, part)).argmax(-1).split(task.counts(part))
        return [tuple(tokens.tolist()) for tokens in best]

    return loaded.world.across(by_length([len(e.ids) for e in encoded], batch_size), work)
