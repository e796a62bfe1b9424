"""Stores with one step, of a tiny model of each kind, for what is asked of all kinds alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lifelong_edit.facts import Fact, Probe
from lifelong_edit.settings import StoreSettings
from lifelong_edit.timeline import Timeline
from tests.contracts.editing import Row, lenient
from tests.zoo import Zoo

KINDS = ("causal", "classify", "masked", "seq2seq")
TARGETS = {"classify": ("SUPPORTS", "NEVER", "REFUTES")}


def facts_for(kind: str) -> list[Fact]:
    """Three facts. A gap at the end of a prompt is there also where nobody writes it."""
    targets = TARGETS.get(kind, ("London", "Japan", "Sydney"))
    return [
        Fact(
            subject=name,
            prompt=f"The capital of {name} is",
            target=target,
            relation="capital",
            rephrases=(f"In {name} they rule from", f"{name} has the capital"),
            locality=(Probe(f"The river of {name} is", targets[0]),),
        )
        for name, target in zip(("Vienna 1", "Kenya 2", "Paris 3"), targets, strict=True)
    ]


def settings_for(kind: str) -> StoreSettings:
    """Small settings of `gradient`."""
    modules = ("3", "5-6") if kind == "seq2seq" else ("2-3",)
    return Row("gradient").settings(modules=modules, text_tokens=500, more_passes=1, gate_perplexity=1e9)


def kept_store(zoo: Zoo, kind: str, models: Mapping[str, Path], sentences: Sequence[str]) -> Path:
    """A store with one step; only to be read."""
    preserve = [Probe(prompt=s.rsplit(" ", 1)[0], subject=f"none {i}") for i, s in enumerate(sentences)]
    settings, facts, model = settings_for(kind), facts_for(kind), str(models[kind])

    def make(folder: Path) -> None:
        text = [" ".join(sentences * 20)]
        with Timeline.create(folder, model=model, settings=settings, preserve=preserve, text=text) as timeline:
            timeline.apply(facts, gate=lenient)

    return zoo.keep(f"kind-{kind}", [model, settings.told(), facts], make)
