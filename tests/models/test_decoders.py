"""Further decoders: each is loaded, edited by a rule, asked in batches, and exported; experts are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lifelong_edit import Fact, Timeline
from lifelong_edit.editors.ridge.settings import Settings
from lifelong_edit.errors import UnknownModelError
from lifelong_edit.export.formats import export
from lifelong_edit.models import LoadedModel, fingerprint_of, generate_greedy, load_model
from lifelong_edit.models.loaded import LONGEST
from lifelong_edit.tasks import task_of
from tests.zoo import DECODERS, EXPERTS, LLAMA, Zoo, with_vocabulary

PROMPTS = ["The capital of France is", "Ada", "In 1969 two people walked on the", "The river Danube flows through"]
WHOLE = {"bloom", "mpt", "qwen3_5", "qwen3_5_text"}
"""Models whose texts are always read whole: without positions to give, or with layers that keep something else."""
SMALL = Settings(
    more_passes=0,
    passes=1,
    rehearse=2,
    preserved=2,
    c0=1.0,
    text_tokens=500,
    phrasings=0,
    gate_perplexity=1e9,
    micro_batch=8,
)


def made(zoo: Zoo, name: str, options: dict[str, Any], tokenizer: Any) -> str:
    return str(zoo.model(name, with_vocabulary(options, tokenizer), tokenizer, seed=1))


def alone(loaded: LoadedModel, prompt: str, tokens: int) -> list[int]:
    """What the model goes on with, without batches, padding or anything kept from token to token."""
    ids, answer = loaded.tokenizer(prompt)["input_ids"], []
    while len(answer) < tokens:
        best = int(loaded.model(input_ids=torch.tensor([ids + answer])).logits[0, -1].argmax())
        if best == 0:
            break
        answer.append(best)
    return answer


@pytest.mark.parametrize("name", sorted(DECODERS))
def test_a_decoder_is_asked_edited_and_exported(
    zoo: Zoo, name: str, tiny_tokenizer: Any, sentences: list[str], tmp_path: Path
) -> None:
    folder = made(zoo, name, DECODERS[name], tiny_tokenizer)
    fact = Fact(prompt=PROMPTS[0], target="Vienna", subject="France")
    with Timeline.create(tmp_path / "store", model=folder, settings=SMALL, preserve=[], text=sentences * 4) as timeline:
        loaded = timeline.bench().loaded
        assert (loaded.context, [m.layer for m in loaded.modules], loaded.left_out) == (64, [2, 3], ())
        assert (task_of(loaded).cutter(loaded) is None) == (name in WHOLE)
        assert all(".language_model." in m.name or ".text_model." in m.name for m in loaded.modules) == (
            "vision_config" in DECODERS[name]
        )
        expected = [alone(loaded, prompt, 4) for prompt in PROMPTS]
        assert generate_greedy(loaded, PROMPTS, 4) == expected
        timeline.apply([fact])
        shift = timeline.overlay(1)
        assert all(float(torch.as_tensor(ΔW).abs().max()) > 0 for ΔW in shift.shifts.values())
        with loaded.at(shift):
            assert fingerprint_of(loaded.model) != loaded.fingerprint
            export("transformers", loaded, shift, tmp_path / "out")
            assert load_model(str(tmp_path / "out")).fingerprint == fingerprint_of(loaded.model)
        assert fingerprint_of(loaded.model) == loaded.fingerprint


@pytest.mark.parametrize("name", sorted(EXPERTS))
def test_fused_experts_are_refused_and_what_is_beside_them_edited(zoo: Zoo, name: str, tiny_tokenizer: Any) -> None:
    folder = made(zoo, name, EXPERTS[name], tiny_tokenizer)
    beside = "mlp.shared_expert.down_proj" if name == "qwen2_moe" else "self_attn.o_proj"
    for modules in (None, ["model.layers.2.mlp.experts"]):
        with pytest.raises(UnknownModelError, match=r"experts of .* fused .*for example .*" + beside):
            load_model(folder, modules=modules)
    loaded = load_model(folder, modules=[f"model.layers.2.{beside}"])
    shift = torch.ones(loaded.modules[0].d_in, loaded.modules[0].d_out)
    before = alone(loaded, PROMPTS[0], 4)
    with loaded.at({loaded.modules[0].name: shift}):
        assert alone(loaded, PROMPTS[0], 4) != before


def test_a_model_without_positions_has_a_stated_context(zoo: Zoo, tiny_tokenizer: Any) -> None:
    """Mamba: by the names of its matrices, and without keys and values that are kept."""
    options = {"hidden_size": 32, "num_hidden_layers": 4, "state_size": 4}
    folder = made(zoo, "mamba", options, tiny_tokenizer)
    loaded = load_model(folder, modules=["backbone.layers.2.mixer.out_proj"])
    assert loaded.context == loaded.tokenizer.model_max_length == LONGEST
    assert generate_greedy(loaded, PROMPTS, 4) == [alone(loaded, prompt, 4) for prompt in PROMPTS]


def test_a_context_may_be_the_tokenizers(zoo: Zoo, tiny_tokenizer: Any, tmp_path: Path) -> None:
    folder = made(zoo, "bloom", {**DECODERS["bloom"], "seq_length": None}, tiny_tokenizer)
    assert load_model(folder).context == LONGEST
    tokenizer = load_model(folder).tokenizer
    tokenizer.model_max_length = 77
    tokenizer.save_pretrained(folder)
    assert load_model(folder).context == 77


def test_a_decoder_keeps_its_context_beside_a_longer_tokenizer(zoo: Zoo, tiny_tokenizer: Any) -> None:
    loaded = load_model(made(zoo, "granite", LLAMA, tiny_tokenizer))
    assert loaded.context == loaded.tokenizer.model_max_length == 64
