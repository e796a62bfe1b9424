"""`eval` against a second implementation: logits exported one sequence at a time, everything else in plain NumPy."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from lifelong_edit.editors.ridge.settings import Settings
from lifelong_edit.eval.metrics.fluency import continuations
from lifelong_edit.eval.reports.evaluation import evaluate
from lifelong_edit.facts import MULTI_HOP, Fact, Probe
from lifelong_edit.timeline import Timeline

TOLERANCE = 1e-6
# The model computes in float32, here unpadded and there in batches: its logits differ by 1e-6 of their size (some 10).
SAMPLE = "Ada Lovelace was born in London and wrote the first published programme. " * 12

Logits = Callable[[tuple[int, ...]], npt.NDArray[np.float64]]


ALIASES = ("Paris", "London", "Warsaw")


def fact(number: int, **changes: Any) -> Fact:
    name = f"Vienna {number}"
    fields: dict[str, Any] = {
        "subject": name,
        "prompt": f"The capital of {name} is",
        "target": ["Paris", "London", "Warsaw"][number % 3],
        "target_true": "Belgrade",
        "rephrases": (f"{name} has the capital", f"The seat of {name} is"),
        "locality": (Probe(f"The river of {name} is", "Danube"), Probe("Kenya's currency is the", "shilling")),
        "portability": (
            Probe(f"In the capital of {name} one pays with the", "yen"),
            Probe(f"The seat of {name} is", "Kenya", aliases=ALIASES, kind=MULTI_HOP),
        ),
        "counterfact_rephrase": f"Ada was born. The capital of {name} is",
    }
    return Fact(**fields | changes)


FACTS = [fact(i) for i in range(5)]
FACTS.append(fact(5, target_true=None, locality=(Probe("The capital of Vienna 0 is"), Probe("In 1969 two people"))))


@pytest.fixture(scope="module")
def timeline(tiny_gpt2: Path, sentences: list[str], tmp_path_factory: pytest.TempPathFactory) -> Timeline:
    """Two batches of three facts."""
    made = Timeline.create(
        tmp_path_factory.mktemp("second") / "store",
        model=str(tiny_gpt2),
        settings=Settings(passes=1, more_passes=0, text_tokens=2000, c0=50, phrasings=1, gate_perplexity=1e9, eta=1.0),
        preserve=[Probe(prompt=sentence.rsplit(" ", 1)[0]) for sentence in sentences],
        text=[" ".join(sentences * 10)],
    )
    for start in (0, 3):
        made.apply(FACTS[start : start + 3])
    return made


class Judge:
    """The metrics once more, in float64 NumPy, from the logits (t, vocabulary) of one unpadded sequence at a time."""

    def __init__(self, timeline: Timeline) -> None:
        self.tokenizer: Any = timeline.at(0).tokenizer
        self.edited, self.base = (self.exported(timeline.at(step).model()) for step in (timeline.head, 0))

    @staticmethod
    def exported(model: Any) -> Logits:
        @cache
        def logits(ids: tuple[int, ...]) -> npt.NDArray[np.float64]:
            with torch.no_grad():
                found: npt.NDArray[np.float64] = model(input_ids=torch.tensor([ids])).logits[0].double().numpy()
            return found

        return logits

    def ids(self, prompt: str, target: str = "") -> tuple[int, ...]:
        found = tuple(self.tokenizer(f"{prompt} {target}" if target else prompt)["input_ids"])
        front = tuple(self.tokenizer(prompt)["input_ids"])
        assert found[: len(front)] == front
        return found[len(front) :] if target else front

    def greedy(self, logits: Logits, front: tuple[int, ...], count: int) -> tuple[int, ...]:
        new: tuple[int, ...] = ()
        while len(new) < count and self.tokenizer.eos_token_id not in new:
            new += (int(np.argmax(logits(front + new)[-1])),)
        return new

    def log_probabilities(self, logits: Logits, front: tuple[int, ...], answer: tuple[int, ...]) -> Any:
        """Of all tokens at each position of the answer, (n, vocabulary)."""
        found = logits(front + answer)[len(front) - 1 : -1]
        shifted = found - found.max(1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))

    def asked(self, prompt: str, target: str) -> tuple[float, float]:
        """Right by generation, right teacher-forced."""
        front, answer = self.ids(prompt), self.ids(prompt, target)
        new = self.greedy(self.edited, front, len(answer) + 3)
        said = self.tokenizer.decode(new, skip_special_tokens=True).lstrip()
        forced = self.log_probabilities(self.edited, front, answer).argmax(1)
        return float(re.match(re.escape(target) + r"(?!\w)", said) is not None), float(tuple(forced) == answer)

    def kept(self, prompt: str, target: str | None) -> tuple[float, float, float]:
        """The base model's answer kept by generation, teacher-forced, and KL(base ‖ edited)."""
        front = self.ids(prompt)
        answer = self.greedy(self.base, front, 5 if target is None else len(self.ids(prompt, target)))
        base, edited = (self.log_probabilities(logits, front, answer) for logits in (self.base, self.edited))
        same = self.greedy(self.edited, front, len(answer)) == answer
        kl = (np.exp(base) * (base - edited)).sum(1).mean()
        return float(same), float(tuple(edited.argmax(1)) == answer), float(kl)

    def mean_log_probability(self, prompt: str, target: str) -> float:
        answer = self.ids(prompt, target)
        found = self.log_probabilities(self.edited, self.ids(prompt), answer)
        return float(np.mean([found[i, token] for i, token in enumerate(answer)]))

    def compared(self, prompt: str, wanted: str, other: str) -> tuple[float, float]:
        a, b = (self.mean_log_probability(prompt, answer) for answer in (wanted, other))
        return float(a > b), math.exp(a) - math.exp(b)

    def perplexity(self, logits: Logits, text: str) -> float:
        ids = self.ids(text.strip())
        windows = [ids[start : start + 64] for start in range(0, len(ids) // 64 * 64, 64)][:30]
        losses = [-self.log_probabilities(logits, w[:1], w[1:])[range(63), w[1:]] for w in windows]
        return math.exp(np.concatenate(losses).mean())


def interval(by_fact: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Mean over all questions and its percentile interval; by_fact: each fact's questions."""
    draws, means = np.random.default_rng(0), []
    for _ in range(2000):
        chosen = [by_fact[i] for i in draws.integers(len(by_fact), size=len(by_fact))]
        means.append(np.mean([value for part in chosen for value in part]))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(np.mean([value for part in by_fact for value in part])), float(low), float(high)


def by_first_fact(asked: Iterable[Iterable[tuple[str, str | None]]]) -> list[list[tuple[str, Any]]]:
    """Each fact's questions, without those that an earlier fact asked; facts without any are left out."""
    seen: set[tuple[str, str | None]] = set()
    found = []
    for questions in asked:
        own = [q for q in dict.fromkeys(questions) if q not in seen]
        seen.update(own)
        found.append(own)
    return [own for own in found if own]


def questions(measure: str, facts: Sequence[Fact]) -> list[list[tuple[str, Any]]]:
    ways: dict[str, Callable[[Fact], list[tuple[str, str | None]]]] = {
        "efficacy": lambda f: [(f.prompt, f.target)],
        "generality": lambda f: [(prompt, f.target) for prompt in f.rephrases],
        "wrapped": lambda f: [(f.counterfact_rephrase or "", f.target)],
        "portability": lambda f: [(probe.prompt, probe.target) for probe in f.portability[:1]],
        "multihop": lambda f: [(probe.prompt, probe.target) for probe in f.portability[1:]],
        "locality": lambda f: [(p.prompt, p.target) for p in f.locality if p.prompt != FACTS[0].prompt],
    }
    return by_first_fact(ways[measure](f) for f in facts)


@pytest.fixture(scope="module")
def judge(timeline: Timeline) -> Judge:
    return Judge(timeline)


@pytest.fixture(scope="module")
def found(timeline: Timeline) -> dict[str, Any]:
    result = evaluate(timeline, text=SAMPLE, probabilities=True, fluency=True, matrices=True).to_json()
    loaded: dict[str, Any] = json.loads(json.dumps(result, allow_nan=False))
    return loaded


def parts(found: dict[str, Any]) -> list[tuple[dict[str, Any], list[Fact]]]:
    """All facts, and each batch's."""
    return [(found["all"], FACTS), (found["batches"][0], FACTS[:3]), (found["batches"][1], FACTS[3:])]


def _any(said: Iterable[tuple[float, ...]]) -> tuple[float, ...]:
    """Of a question with several right answers: right where one is."""
    return tuple(map(max, zip(*said, strict=True)))


@pytest.mark.parametrize("measure", ["efficacy", "generality", "wrapped", "portability", "multihop"])
def test_answers(found: dict[str, Any], judge: Judge, measure: str) -> None:
    for part, facts in parts(found):
        asked = questions(measure, facts)
        others = ALIASES if measure == "multihop" else ()
        said = [
            [_any(judge.asked(prompt, answer) for answer in (target, *others)) for prompt, target in own]
            for own in asked
        ]
        for column, way in enumerate(("generated", "teacher_forced")):
            expected = interval([[values[column] for values in own] for own in said])
            got = part[measure][way], part[measure]["low"][way], part[measure]["high"][way]
            assert got == pytest.approx(expected, abs=TOLERANCE), way
        assert part[measure]["questions"] == sum(map(len, asked))
        assert part[measure]["facts"] == len(asked)


def test_locality_and_divergence(found: dict[str, Any], judge: Judge) -> None:
    for part, facts in parts(found):
        said = [[judge.kept(*question) for question in own] for own in questions("locality", facts)]
        for column, way in enumerate(("generated", "teacher_forced")):
            expected = interval([[values[column] for values in own] for own in said])
            got = part["locality"][way], part["locality"]["low"][way], part["locality"]["high"][way]
            assert got == pytest.approx(expected, abs=TOLERANCE), way
        kl = part["locality"]["kl"]
        expected = interval([[values[2] for values in own] for own in said])
        assert (kl["value"], kl["low"], kl["high"]) == pytest.approx(expected, abs=TOLERANCE)
        assert kl["value"] > 1e-3, "an edit that changes nothing would test nothing"
    assert found["dropped_neighbours"] == 1


def test_comparisons(found: dict[str, Any], judge: Judge) -> None:
    for part, facts in parts(found):
        known = [f for f in facts if f.target_true]
        assert part["probabilities"]["not_compared"] == len(facts) - len(known)
        kinds: dict[str, list[list[tuple[float, float]]]] = {"E": [], "P": [], "N": []}
        for f in known:
            true = str(f.target_true)
            kinds["E"].append([judge.compared(f.prompt, f.target, true)])
            paraphrases = [*f.rephrases, str(f.counterfact_rephrase)]
            kinds["P"].append([judge.compared(prompt, f.target, true) for prompt in paraphrases])
            kinds["N"].append([judge.compared(probe.prompt, str(probe.target), f.target) for probe in f.locality])
        for kind, values in kinds.items():
            for column, name in enumerate("SM"):
                expected = interval([[float(np.mean(own, axis=0)[column])] for own in values])
                got = part["probabilities"][kind + name]
                assert (got["value"], got["low"], got["high"]) == pytest.approx(expected, abs=TOLERANCE), kind + name


def test_perplexity(found: dict[str, Any], judge: Judge) -> None:
    """Relative: it is exp of a mean, some hundred here."""
    assert found["perplexity"] == pytest.approx(judge.perplexity(judge.edited, SAMPLE), rel=TOLERANCE)
    assert found["base_perplexity"] == pytest.approx(judge.perplexity(judge.base, SAMPLE), rel=TOLERANCE)


def test_fluency(found: dict[str, Any], timeline: Timeline) -> None:
    """From the texts that the model wrote, tables of all runs of words."""

    def entropy(text: str) -> float:
        words = [w for w in re.split(r"(\w+|\S)", text) if w.strip()]
        codes = np.unique(words, return_inverse=True)[1]
        total = 0.0
        for n in (2, 3):
            runs = np.lib.stride_tricks.sliding_window_view(codes, n)
            counts = np.unique(runs, axis=0, return_counts=True)[1]
            shares = counts / counts.sum()
            total += (n - 1) / 3 * float(-(shares * np.log2(shares)).sum())
        return total

    prompts = [f.prompt for f in FACTS]
    for step, name in ((timeline.head, "now"), (0, "base")):
        with timeline.at(step).standing() as loaded:
            expected = interval([[entropy(text)] for text in continuations(loaded, prompts)])
        got = found["fluency"][name]
        assert (got["value"], got["low"], got["high"]) == pytest.approx(expected, abs=TOLERANCE)
        assert got["value"] > 1


def test_matrices(found: dict[str, Any], timeline: Timeline) -> None:
    base, edited = timeline.at(0).model(), timeline.at(timeline.head).model()
    assert [change["module"] for change in found["matrices"]] == [m.name for m in timeline.bench().loaded.modules]
    for change in found["matrices"]:
        before, after = (
            model.get_submodule(change["module"]).weight.detach().double().numpy() for model in (base, edited)
        )
        for side, matrix in (("base", before), ("now", after)):
            figures = (np.linalg.norm(matrix), np.linalg.norm(matrix, 2), np.linalg.cond(matrix))
            got = change[side]
            assert (got["frobenius"], got["spectral"], got["condition"]) == pytest.approx(figures, rel=TOLERANCE)
        assert change["shift"] == pytest.approx(np.linalg.norm(after - before) / np.linalg.norm(before), rel=TOLERANCE)
        assert change["shift"] > 1e-3
