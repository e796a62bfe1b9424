"""The bundled model with a change leaves in every format, and answers the same where it comes in again."""

from __future__ import annotations

import runpy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from lifelong_edit.export.formats import FORMATS, export
from lifelong_edit.models import LoadedModel, Shifts, load_model
from lifelong_edit.models.places import locate
from lifelong_edit.timeline.defaults import default_preserved

PROMPTS = 30


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model("atlas")


@pytest.fixture(scope="module")
def changed(loaded: LoadedModel) -> Shifts:
    """A change of rank 24 in every matrix, values falling off, so large that a model of sure answers gives others."""
    generator, fall = torch.Generator().manual_seed(7), torch.linspace(1, 0.05, 24)
    shifts = {}
    for m in loaded.modules:
        left, right = (torch.randn(*shape, generator=generator) for shape in ((m.d_in, 24), (24, m.d_out)))
        drawn = (left * fall) @ right
        shifts[m.name] = drawn * (16 * loaded.base_weight(m.name).norm() / drawn.norm())
    return Shifts(shifts)


def answers(model: Any, loaded: LoadedModel) -> list[list[int]]:
    said = []
    for probe in default_preserved("atlas")[:PROMPTS]:
        ids = loaded.tokenizer(probe.prompt, return_tensors="pt")["input_ids"]
        new = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)
        said.append(new[0, ids.shape[1] :].tolist())
    return said


def opened(kind: str, out: Path) -> Any:
    """By the library that a format is for."""
    base = locate("atlas").path
    if kind == "delta":
        runpy.run_path(str(out / "apply.py"))["main"](base, str(out / "whole"), out)
        out = out / "whole"
    if kind == "peft":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of peft about a name of transformers
            return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), out)
    if kind == "gguf":  # of which transformers takes any GPT-2 for one of 1,024 positions
        return load_model(str(out)).model
    return AutoModelForCausalLM.from_pretrained(out)


@pytest.mark.parametrize("kind", FORMATS)
def test_it_answers_the_same(kind: Any, loaded: LoadedModel, changed: Shifts, tmp_path: Path) -> None:
    wanted, base = answers(loaded.edited_copy(changed.shifts), loaded), answers(loaded.model, loaded)
    assert sum(one != other for one, other in zip(wanted, base, strict=True)) > PROMPTS // 3
    export(kind, loaded, changed, tmp_path / "out")
    found = answers(opened(kind, tmp_path / "out"), loaded)
    differ = sum(one != other for one, other in zip(found, wanted, strict=True))
    assert differ <= (PROMPTS // 30 if kind == "peft" else 0)
