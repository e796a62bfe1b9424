"""The benchmark of the published step, on a tiny model: what it measures is there, and a wrong shift ends it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import bench_published
from benchmarks.bench_published import CLOSE, run
from benchmarks.published import Rule, gradient_rule
from lifelong_edit.facts import Fact
from lifelong_edit.models import load_model

FACTS = [
    Fact(subject=name, prompt=f"The capital of {name} is", target=target + " on the river" * (i % 2))
    for i, (name, target) in enumerate([("Paris", "Kenya"), ("Vienna", "Belgrade"), ("Japan", "Sydney")])
]


def test_a_step_is_what_the_published_procedure_makes_of_it(tiny_gpt2: Path, sentences: list[str]) -> None:
    found = run(FACTS, load_model(str(tiny_gpt2)), sentences, 300, 1)
    for rule in ("malmen", "gradient"):
        assert found[rule]["rows"] == len(FACTS)
        assert found[rule]["shift_differs_by"]["published procedure, float64"] < CLOSE
        for step in ("step_relative_to", "finding_conflict_keys_too_relative_to"):
            assert set(found[rule][step]) == {
                "primal solves",
                "bare pass, edited matrices",
                "bare pass, answer positions",
                "published procedure, float32",
                "published procedure, float64",
            }
        assert min(found[rule]["cpu_seconds"].values()) > 0


def test_a_shift_that_is_not_the_procedures_ends_the_run(
    tiny_gpt2: Path, sentences: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(eta: float, kappa: float, trust: float) -> Rule:
        return gradient_rule(1.01 * eta, kappa, trust)

    monkeypatch.setattr(bench_published, "gradient_rule", wrong)
    with pytest.raises(SystemExit, match="gradient differ"):
        run(FACTS, load_model(str(tiny_gpt2)), sentences, 300, 1)
