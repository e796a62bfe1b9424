"""Each rule that edits encoders on a tiny classifier: what a store of it does, and that the others refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lifelong_edit.editors.registry import RULES, rule_of
from lifelong_edit.errors import UsageError
from lifelong_edit.facts import Fact, Probe
from lifelong_edit.timeline import Timeline
from tests.contracts.conftest import write_network
from tests.contracts.editing import PLACES, Row, lenient
from tests.zoo import Zoo

TAKEN = [name for name in RULES if "classify" in rule_of(name).tasks]
LABELS = ("REFUTES", "SUPPORTS")
MODULES = ("0@subject", "2-3")
OWN_MODULES = {"grace": ("2-3",), "neurons": ("2",)}
"""Of rules that edit at the answer alone."""


def claims(number: int, size: int = 3) -> list[Fact]:
    """A batch of claims about subjects of their own."""
    found = []
    for i in range(number * size, (number + 1) * size):
        name = PLACES[i % 8] + f" {i}"
        prompt, other = f"The capital of {name} is Vienna.", f"{name} has the capital Vienna."
        target = LABELS[i % 2]
        found.append(Fact(subject=name, prompt=prompt, target=target, relation="capital", rephrases=(other,)))
    return found


@pytest.fixture(scope="module")
def made(zoo: Zoo, tiny_bert: Path, sentences: list[str]) -> Callable[[str, Path], Timeline]:
    """A new store of a rule."""

    def make(name: str, to: Path) -> Timeline:
        row = Row(name)
        given: dict[str, Any] = {}
        if "network" in row.rule.needs:
            key = [str(tiny_bert), row.form, MODULES]
            folder = zoo.keep("network", key, lambda at: write_network(at, tiny_bert, MODULES, row.form))
            given["hypernetwork"] = str(folder)
        preserve = [Probe(prompt=text, subject=f"none {i}") for i, text in enumerate(sentences)]
        settings = row.settings(modules=OWN_MODULES.get(name, MODULES), text_tokens=1000)
        text = [" ".join(sentences * 20)]
        return Timeline.create(to, model=str(tiny_bert), settings=settings, preserve=preserve, text=text, **given)

    return make


def chances(timeline: Timeline, step: int) -> list[str]:
    """What the model says of the first batch at a step, with the probabilities of all labels."""
    return [timeline.at(step).ask(fact.prompt) for fact in claims(0)]


@pytest.mark.parametrize("name", TAKEN)
def test_a_rule_edits_a_classifier_and_goes_back(
    made: Callable[[str, Path], Timeline], name: str, tmp_path: Path
) -> None:
    """Taught, gone back from, taught again to the bit; taken back as if it had never been, and solved again."""
    with made(name, tmp_path / "store") as timeline:
        before = chances(timeline, 0)
        timeline.apply(claims(0), gate=lenient)
        first = timeline.show(1)
        taught = chances(timeline, 1)
        assert taught != before
        timeline.apply(claims(1), gate=lenient)
        timeline.rollback(1)
        assert chances(timeline, timeline.head) == taught
        timeline.rollback(0)
        assert chances(timeline, timeline.head) == before
        timeline.apply(claims(0), again=True, gate=lenient)
        again = timeline.show(timeline.head)
        assert (again.weights_digest, again.live_digest) == (first.weights_digest, first.live_digest)
        if rule_of(name).relearns:
            timeline.retract([claims(0)[0].digest])
            alone = timeline.at(timeline.head)
            assert [fact.prompt for fact in alone.facts()] == [fact.prompt for fact in claims(0)[1:]]
            kept = {module: np.array(shift) for module, shift in alone.shifts().items()}
            timeline.reconsolidate()
            for module, shift in timeline.at(timeline.head).shifts().items():
                np.testing.assert_array_equal(shift, kept[module])


def test_the_other_rules_say_that_they_do_not(tiny_bert: Path, sentences: list[str], tmp_path: Path) -> None:
    others = [name for name in RULES if name not in TAKEN]
    assert "memit" in others and "search" in others
    for name in others:
        with pytest.raises(UsageError, match=rf"found a classifier, but the editing rule {name} edits decoders"):
            rule_of(name).require_kind("classify")
    with pytest.raises(UsageError, match="found a classifier, but the editing rule memit"):
        settings = Row("memit").settings()
        text = [" ".join(sentences * 20)]
        Timeline.create(tmp_path / "store", model=str(tiny_bert), settings=settings, preserve=[], text=text)
