"""When a generated text answers a question: cases worked out by hand."""

from __future__ import annotations

import math

import pytest

from lifelong_edit.eval.metrics.verdicts import Result, summarise
from lifelong_edit.tasks.causal.verdicts import judge

PROMPT = "The capital of France is"


@pytest.mark.parametrize(
    ("text", "generated", "natural"),
    [
        (" Paris.", True, True),
        (" Paris!", True, True),
        (" Paris, on the", True, False),
        (" Paris on the Seine", True, False),
        (" Paris", True, False),
        ("\nParis.", True, True),
        (" Parisian cafés", False, False),
        (" Paris-Nord", False, False),
        (" Paris - and", True, False),
        (" Paris-2", True, False),
        (" Paris2", False, False),
        (" Par", False, False),
        (" in Paris.", False, False),
        (" paris.", False, False),
        ("Paris.", False, False),
        ("", False, False),
    ],
)
def test_answer_starts_with_the_target_and_ends_at_a_word_boundary(text: str, generated: bool, natural: bool) -> None:
    assert judge(PROMPT, "Paris", text, stopped=False) == (generated, natural)


def test_end_of_text_right_after_the_target_is_natural() -> None:
    assert judge(PROMPT, "Paris", " Paris", stopped=True) == (True, True)
    assert judge(PROMPT, "Paris", " Paris and", stopped=True) == (True, False)


@pytest.mark.parametrize(
    ("prompt", "target", "text", "expected"),
    [
        ('He said "', "Paris", 'Paris".', (True, False)),
        ("The capital is ", "Paris", "Paris.", (True, True)),
        ("It has", "3", " 3.5 million", (False, False)),
        ("It has", "3", " 3. It", (True, True)),
        ("It has", "1,200", " 1,200 people", (True, False)),
        ("法国的首都是", "巴黎", "巴黎是", (True, False)),
        ("法国的首都是", "巴黎", "巴黎。", (True, True)),
        ("He was born in", "Malmo\u0308", " Malmö.", (True, True)),
        ("He was born in", "Malmo", " Malmo\u0308.", (False, False)),
        ("He lives in the", "U.S.", " U.S. today", (True, False)),
        ("He lives in", " Paris ", " Paris.", (True, True)),
    ],
)
def test_boundaries_in_numbers_scripts_and_accents(
    prompt: str, target: str, text: str, expected: tuple[bool, bool]
) -> None:
    assert judge(prompt, target, text, stopped=False) == expected


def test_shares() -> None:
    results = [Result(True, True, True, "a"), Result(True, True, False, "b"), Result(True, False, False, "c")]
    results.append(Result(False, False, False, "d"))
    score = summarise(results)
    assert (score.count, score.teacher_forced, score.generated, score.natural) == (4, 0.75, 0.5, 0.25)
    empty = summarise([])
    assert empty.count == 0 and math.isnan(empty.generated)
