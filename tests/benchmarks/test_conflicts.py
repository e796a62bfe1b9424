"""What the benchmark of conflicts counts: by hand, on few pairs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.bench_conflicts import (
    Model,
    against,
    cases,
    halves,
    in_a_stream,
    judge,
    meeting,
    precision,
    reliability,
)
from benchmarks.reliability import save_figure
from lifelong_edit import atlas
from lifelong_edit.facts import Fact, read_facts
from lifelong_edit.models import encode_prompt, load_model
from lifelong_edit.policies import Scorer
from lifelong_edit.policies.scoring import FEATURES, same_subject
from lifelong_edit.timeline.defaults import default_scorer
from lifelong_edit.tracing.conflict_keys import lowest_keys


def fact(subject: str, relation: str, answer: str) -> Fact:
    texts = tuple(f"{subject} {word} {relation}" for word in ("has the", "with its", "and the"))
    return Fact(
        subject=subject, relation=relation, prompt=texts[0], rephrases=texts[1:], target="x", target_true=answer
    )


FACTS = [
    fact(subject, relation, answer)
    for relation, answers in (("river", "ab"), ("capital", "cd"), ("anthem", "ef"), ("flag", "gh"))
    for subject, answer in zip(("Oslo", "Lima", "Rome"), (*answers, answers[0]), strict=True)
]
SCORER = Scorer(
    features=FEATURES,
    means=(0.0, 0.0),
    scales=(1.0, 1.0),
    coefficients=(1.0, 0.0),
    intercept=0.0,
    auc=1.0,
    threshold=0.6,
)


def test_cases_are_of_the_kinds_that_they_say() -> None:
    found = cases(FACTS, {"river": ["[X] is ruled from"]}, 0)
    assert {case.kind for case in found} == {"paraphrase", "random", "answer", "subject"}
    assert found == cases(FACTS, {"river": ["[X] is ruled from"]}, 0)
    origin = {text: f for f in FACTS for text in (f.prompt, *f.rephrases)}
    for case in found:
        new, old = origin.get(case.pair.new.prompt), origin[case.pair.old.prompt]
        assert case.pair.same == (case.kind == "paraphrase")
        assert same_subject(case.pair.new, case.pair.old) == (case.kind in ("paraphrase", "subject"))
        if new is None:
            assert (case.kind, case.pair.new.prompt) == ("subject", f"{old.subject} is ruled from")
        elif case.kind == "answer":
            assert (new.relation, new.target_true) == (old.relation, old.target_true)
        elif case.kind != "paraphrase":
            assert new.relation != old.relation


def test_relations_are_cut_in_two_and_what_meets_is_told() -> None:
    half = halves(FACTS, 0)
    assert len(half) == 2
    assert half < {"river", "capital", "anthem", "flag"}
    forms = {"a": ["[X] one"], "b": ["[X] one", "[X] two"], "c": ["[X] three"]}
    world = {"a": [("Oslo", "1")], "b": [("Oslo", "2")], "c": [("Lima", "3")], "d": [("Oslo", "4")]}
    assert meeting(forms, world) == {"a": [("b", "[X] two")], "b": [], "c": []}


def test_figures_by_hand() -> None:
    true, other = np.array([0.9, 0.8, 0.3]), np.arange(20) / 40
    found = against(true, other)
    assert found is not None
    assert found["auc"] == pytest.approx((20 + 20 + 12.5) / 60)
    assert found["recall at 1 in 1000"] == pytest.approx(2 / 3)
    assert against(true, other[:9]) is None
    assert precision(np.array([True, True, False, False]), np.array([True, False, False, False])) == pytest.approx(
        2 / 3
    )
    said = np.array([0.95, 0.95, 0.05, 0.95])
    told = reliability(said, np.array([True, True, False, False]), np.array([False, False, True, True]))
    assert [(b["seen"], b["pairs"]) for b in told["bins"]] == [(0.0, 1), (pytest.approx(2 / 3), 3)]
    assert told["expected calibration error"] == pytest.approx(0.25 * 0.05 + 0.75 * (0.95 - 2 / 3))


def test_what_is_about_another_subject_is_no_alarm() -> None:
    chosen = cases(FACTS, {}, 0)
    features = np.array([[2.0, 0.0]] * len(chosen))
    found = judge(chosen, features, lambda _: SCORER)
    assert found["recall at the threshold"]["paraphrase"] == 1
    assert found["false alarms at the threshold"] == {"random": 0, "answer": 0, "subject": 1}
    assert judge(chosen, 0 * features, lambda _: SCORER)["recall at the threshold"]["paraphrase"] == 0


def test_the_same_results_give_the_same_figure(tmp_path: Path) -> None:
    bins = [{"said": 0.1, "seen": 0.2, "pairs": 30}, {"said": 0.7, "seen": 0.6, "pairs": 30}]
    results = tmp_path / "conflicts.json"
    results.write_text(json.dumps({"results": {"seed": 0, "m": {"known, own": {"reliability": {"bins": bins}}}}}))
    drawn = []
    for name in ("a", "b"):
        save_figure(results, tmp_path / name)
        drawn.append((tmp_path / name / "conflicts.svg").read_bytes())
    assert drawn[0] == drawn[1]
    assert b"m: known, own" in drawn[0]


def test_facts_in_a_stream_meet_those_in_force() -> None:
    """On the bundled model: index, subjects and decisions as a timeline has them."""
    loaded = load_model("atlas")
    facts = [r.fact for r in read_facts([str(atlas.edits_validation_path())])][:60]
    texts = [encode_prompt(loaded.tokenizer, fact.prompt) for fact in facts]
    mean = lowest_keys(loaded, texts, 16).mean(0).numpy()
    model = Model("atlas", loaded, mean, [], {}, {}, [])
    found = in_a_stream(model, facts, lambda relation: default_scorer(), 0)
    assert (found["in force"], found["asked"]["unrelated"]) == (30, 30)
    assert found["same answer"]["found"] > 0.5
    assert (
        found["another answer"]["contradictions"] == found["another answer"]["found"] == found["same answer"]["found"]
    )
    assert found["unrelated"]["alarms"] < 0.2
