"""Neurons that a rule gives to models of every family: asked with hooks, and as a wider model without any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lifelong_edit import Fact, Timeline, attach
from lifelong_edit.editors.neurons.settings import NeuronsSettings
from lifelong_edit.errors import UsageError
from lifelong_edit.export.formats import export
from lifelong_edit.facts import Probe
from lifelong_edit.models import BASE, load_model, without_hooks
from lifelong_edit.models.loading import AUTO
from lifelong_edit.tasks import task_of
from tests.models import test_encoders
from tests.models.test_decoders import made
from tests.zoo import DECODERS, ENCODERS, Zoo

SMALL = NeuronsSettings(
    form="plain",
    rounds=12,
    contexts=2,
    swapped=1,
    text_tokens=500,
    phrasings=0,
    gate_perplexity=1e9,
    micro_batch=8,
    precision="float32",
    own=1.0,
    modules=("1@subject",),
)
FIXED_WIDTH = ("bloom", "mpt")
"""Their configurations know no width of an MLP."""
FACTS = [
    Fact(prompt="The capital of Zubrowka is", target="Vienna", subject="Zubrowka"),
    Fact(prompt="The river Quoz flows through", target="Oslo", subject="Quoz"),
]


@pytest.mark.parametrize("name", sorted(DECODERS))
def test_a_grown_model_is_the_same_without_hooks(
    zoo: Zoo, name: str, tiny_tokenizer: Any, sentences: list[str], tmp_path: Path
) -> None:
    folder = made(zoo, name, DECODERS[name], tiny_tokenizer)
    with Timeline.create(tmp_path / "store", model=folder, settings=SMALL, preserve=[], text=sentences * 4) as timeline:
        loaded = timeline.bench().loaded
        timeline.apply(FACTS)
        overlay = timeline.overlay(1)
        ids = loaded.tokenizer(FACTS[0].prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            base = loaded.model(input_ids=ids).logits
            with loaded.at(overlay):
                meant = loaded.model(input_ids=ids).logits
        moved = float((meant - base).abs().max())
        assert moved > 1e-3, "nothing was taught"
        if name in FIXED_WIDTH:
            with pytest.raises(UsageError, match="cannot be made wider"):
                export("transformers", loaded, overlay, tmp_path / "out")
            assert not (tmp_path / "out").exists()
            return
        alone, shifts = without_hooks(loaded, overlay)
        assert shifts == {}
        export("transformers", loaded, overlay, tmp_path / "out")
        read = load_model(str(tmp_path / "out"))
        assert read.fingerprint == alone.fingerprint
        with torch.no_grad(), read.at(BASE):
            found = read.model(input_ids=ids).logits
        assert float((found - meant).abs().max()) < 0.02 * moved + 1e-5


CLAIMS = [
    Fact(prompt="The capital of Zubrowka is Vienna.", target="DISPUTED", rephrases=("Vienna is Zubrowka's capital.",)),
    Fact(prompt="The river Quoz flows through Oslo.", target="SUPPORTS"),
]


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_a_grown_classifier_is_the_same_without_hooks(
    zoo: Zoo, name: str, encoder_tokenizer: Any, sentences: list[str], tmp_path: Path
) -> None:
    """Facts without a subject; at home in one layer, where a text is read as a whole; back to the bit."""
    folder = test_encoders.made(zoo, name, "classify", encoder_tokenizer)
    settings = SMALL.replace(modules=(), own=5.0)
    others = [Probe(text) for text in sentences]
    with Timeline.create(
        tmp_path / "store", model=folder, settings=settings, preserve=others, text=sentences * 8
    ) as timeline:
        loaded = timeline.bench().loaded
        (module,) = loaded.modules
        assert (module.layer, module.positions) == (2, "answer")
        task, asked = task_of(loaded), [fact.prompt for fact in CLAIMS]
        batch = task.collate(loaded, [task.encode(loaded, fact.prompt, fact.target) for fact in CLAIMS])
        timeline.apply(CLAIMS)
        with torch.no_grad():
            base = task.logits(loaded, batch)
            with loaded.at(timeline.overlay(1)):
                meant, said = task.logits(loaded, batch), task.answer(loaded, asked, 1)
                assert [task.text(loaded, p, a) for p, a in zip(asked, said, strict=True)] == ["DISPUTED", "SUPPORTS"]
            assert torch.equal(task.logits(loaded, batch), base)
        held = AUTO["classify"].from_pretrained(folder)
        with torch.no_grad(), attach(held, timeline):
            given = loaded.tokenizer(asked[0], return_tensors="pt")
            assert float((held(**given).logits[0] - meant[0]).abs().max()) < 1e-3 * float((meant - base).abs().max())
        export("transformers", loaded, timeline.overlay(1), tmp_path / "out")
        read = load_model(str(tmp_path / "out"))
        assert not timeline.at(1).model().training
        with torch.no_grad(), read.at(BASE):
            found = task.logits(read, batch)
        moved = float((meant - base).abs().max())
        assert float((found - meant).abs().max()) < 0.02 * moved + 1e-5
        assert task.answer(read, asked, 1) == said
