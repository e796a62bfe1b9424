"""Neurons that a rule gives to decoders of every family: asked with hooks, and as a wider model without any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lifelong_edit import Fact, Timeline
from lifelong_edit.editors.neurons.settings import NeuronsSettings
from lifelong_edit.errors import UsageError
from lifelong_edit.export.formats import export
from lifelong_edit.models import BASE, load_model, without_hooks
from tests.models.test_decoders import made
from tests.zoo import DECODERS, Zoo

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
