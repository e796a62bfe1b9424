"""Every model family: which modules are edited, how they are stored, and that edits reach the logits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from lifelong_edit.errors import ModelMismatchError, UnknownModelError
from lifelong_edit.models import (
    FAMILIES,
    LoadedModel,
    compose,
    encode,
    fingerprint_of,
    generate_greedy,
    load_model,
    pad,
)
from lifelong_edit.models.families import (
    MOST_LAYERS,
    MOST_SUBJECT_LAYERS,
    default_entries,
    default_layers,
    entries_of,
    entries_up_to,
    subject_layers,
)
from tests.zoo import DECODERS

LAYERS = 4
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 64},
    "gpt_neo": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_layers": LAYERS,
        "num_heads": 4,
        "attention_types": [[["global", "local"], LAYERS // 2]],
        "max_position_embeddings": 64,
        "window_size": 8,
    },
    "gpt_neox": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    },
    "gptj": {"n_embd": 32, "n_inner": 48, "n_layer": LAYERS, "n_head": 4, "n_positions": 64, "rotary_dim": 4},
    "opt": {
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 32,
        "max_position_embeddings": 64,
        "pad_token_id": 1,
    },
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2"), LLAMA),
    "gemma3_text": {**LLAMA, "sliding_window": 8, "query_pre_attn_scalar": 8},
}
PROMPTS = ["The capital of France is", "Ada", "In 1969 two people walked on the", "The river Danube flows through"]


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A model of the family with random weights, saved with its tokenizer."""
    options = {**CONFIGS[family], "vocab_size": len(tiny_tokenizer), "bos_token_id": 0, "eos_token_id": 0}
    config = transformers.AutoConfig.for_model(family, **options)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.15)
    path = tmp_path_factory.mktemp(family)
    model.save_pretrained(path)
    tiny_tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def loaded(folder: Path) -> LoadedModel:
    return load_model(str(folder))


def logits(loaded: LoadedModel, prompt: str = PROMPTS[0], target: str = "Paris") -> torch.Tensor:
    batch = pad([encode(loaded.tokenizer, prompt, target)], loaded.pad_id, loaded.device)
    out: torch.Tensor = loaded.model(input_ids=batch.ids, attention_mask=batch.mask).logits
    return out


def test_every_family_of_the_registry_is_held_by_these_tests() -> None:
    decoders = {name for name, family in FAMILIES.items() if family.kind == "causal"}
    assert set(CONFIGS) | set(DECODERS) == decoders


def test_upper_half_at_the_answer_by_default(loaded: LoadedModel, family: str) -> None:
    assert [(m.layer, m.positions) for m in loaded.modules] == [(2, "answer"), (3, "answer")]
    assert loaded.conflict_module == loaded.modules[0]
    assert loaded.family.model_type == family
    assert loaded.family.kind == "causal"
    assert loaded.context == 64
    for module in loaded.modules:
        d_in, d_out = (128 if family == "gpt2" else 48), 32
        assert (module.d_in, module.d_out) == (d_in, d_out)
        assert module.orientation == ("conv1d" if family == "gpt2" else "linear")


def test_module_output_is_key_times_base_weight(loaded: LoadedModel) -> None:
    """y = kW + b against what the module really took and gave: the orientation is right."""
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for m in loaded.modules:
        loaded.model.get_submodule(m.name).register_forward_hook(
            lambda _, inputs, output, name=m.name: seen.update({name: (inputs[0], output)})
        )
    logits(loaded)
    for module in loaded.modules:
        key, value = seen[module.name]
        bias = getattr(loaded.model.get_submodule(module.name), "bias", None)
        expected = key @ loaded.base_weight(module.name) + (0 if bias is None else bias)
        # OPT flattens batch and positions before its MLP; the order of rows stays.
        assert key.shape[-1] == module.d_in
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)


def test_zero_shift_changes_no_byte(loaded: LoadedModel) -> None:
    with loaded.at({m.name: torch.zeros(m.d_in, m.d_out) for m in loaded.modules}):
        assert fingerprint_of(loaded.model) == loaded.fingerprint


def test_shift_moves_the_output_by_key_times_shift_and_is_undone_exactly(loaded: LoadedModel) -> None:
    before = logits(loaded)
    last = loaded.modules[-1]
    key: list[torch.Tensor] = []
    output: list[torch.Tensor] = []

    def record(_: nn.Module, inputs: tuple[torch.Tensor], out: torch.Tensor) -> None:
        key.append(inputs[0])
        output.append(out)

    handle = loaded.model.get_submodule(last.name).register_forward_hook(record)
    logits(loaded)
    shift = torch.randn(last.d_in, last.d_out, generator=torch.Generator().manual_seed(2)) * 0.1
    with loaded.at({last.name: shift}):
        after = logits(loaded)
    handle.remove()
    torch.testing.assert_close(key[0], key[1])
    torch.testing.assert_close(output[1] - output[0], key[0] @ shift, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, after, atol=1e-3)
    assert torch.equal(loaded.base_weight(last.name) + shift, compose(loaded.base_weight(last.name), shift))
    first = loaded.modules[0]
    with loaded.at({first.name: torch.ones(first.d_in, first.d_out)}):
        assert fingerprint_of(loaded.model) != loaded.fingerprint
    assert fingerprint_of(loaded.model) == loaded.fingerprint
    assert torch.equal(logits(loaded), before)


def test_batches_generate_what_single_prompts_do(loaded: LoadedModel) -> None:
    together = generate_greedy(loaded, PROMPTS, [6, 8, 5, 12])
    alone = [generate_greedy(loaded, [p], n)[0] for p, n in zip(PROMPTS, [6, 8, 5, 12], strict=True)]
    assert together == alone
    assert len({tuple(ids[:3]) for ids in together}) > 1


def test_generation_equals_repeated_whole_forward_passes(loaded: LoadedModel) -> None:
    """The judge keeps no cache, pads nothing and asks the model afresh for every token."""
    ids = loaded.tokenizer(PROMPTS[0])["input_ids"]
    expected: list[int] = []
    for _ in range(8):
        best = int(loaded.model(input_ids=torch.tensor([ids + expected])).logits[0, -1].argmax())
        if best == 0:
            break
        expected.append(best)
    assert generate_greedy(loaded, PROMPTS, 8)[0] == expected


def test_round_trip_through_bfloat16(folder: Path) -> None:
    loaded = load_model(str(folder), dtype="bfloat16")
    full = load_model(str(folder))
    assert loaded.fingerprint != full.fingerprint
    name = loaded.modules[0].name
    assert loaded.base_weight(name).dtype == torch.float32
    shift = torch.full(loaded.base_weight(name).shape, 0.01)
    with loaded.at({name: shift}):
        weight = loaded.model.get_submodule(name).weight
        stored = weight if loaded.modules[0].orientation == "conv1d" else weight.T
        assert stored.dtype == torch.bfloat16
        assert torch.equal(stored, (full.base_weight(name).bfloat16().float() + shift).bfloat16())


def test_edited_copy_shares_nothing(loaded: LoadedModel) -> None:
    module = loaded.modules[0]
    before = logits(loaded)
    copy = loaded.edited_copy({module.name: torch.ones(module.d_in, module.d_out)})
    assert fingerprint_of(copy) != loaded.fingerprint
    assert torch.equal(logits(loaded), before)
    for parameter in copy.parameters():
        parameter.data.zero_()
    assert fingerprint_of(loaded.model) == loaded.fingerprint


def test_modules_by_layer_range_and_by_name(tiny_gpt2: Path) -> None:
    layers = [m.layer for m in load_model(str(tiny_gpt2), modules=["1-2", "0"]).modules]
    assert layers == [0, 1, 2]
    named = load_model(str(tiny_gpt2), modules=["transformer.h.3.mlp.c_fc", "transformer.h.1.mlp.c_proj"]).modules
    assert [(m.name, m.d_in, m.d_out) for m in named] == [
        ("transformer.h.1.mlp.c_proj", 128, 32),
        ("transformer.h.3.mlp.c_fc", 32, 128),
    ]


def test_modules_are_edited_at_the_subject_where_they_are_named_so(tiny_gpt2: Path) -> None:
    name = "transformer.h.2.mlp.c_proj"
    loaded = load_model(str(tiny_gpt2), modules=["3", " 0-1@subject", f"{name}@subject", "1@subject"])
    assert [(m.layer, m.positions) for m in loaded.modules] == [
        (0, "subject"), (1, "subject"), (2, "subject"), (3, "answer")
    ]  # fmt: skip
    assert loaded.conflict_module.layer == 3
    entries = [m.entry for m in loaded.modules]
    assert entries[2:] == [f"{name}@subject", "transformer.h.3.mlp.c_proj"]
    again = load_model(str(tiny_gpt2), modules=entries[::-1])
    assert again.modules == loaded.modules
    everywhere = load_model(str(tiny_gpt2), modules=["1-2@subject"])
    assert everywhere.conflict_module.layer == 1  # for want of one at the answer


@pytest.mark.parametrize("modules", [["0-1@subject", "1-3"], ["2", "transformer.h.2.mlp.c_proj@subject"]])
def test_a_module_named_both_ways_is_refused(tiny_gpt2: Path, modules: list[str]) -> None:
    with pytest.raises(UnknownModelError, match=r"transformer\.h\.[12]\.mlp\.c_proj'.*@subject and without"):
        load_model(str(tiny_gpt2), modules=modules)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (["transformer.h.9.mlp.c_proj"], "transformer.h.3.mlp.c_proj"),
        (["transformer.h.1.ln_1"], "LayerNorm"),
        (["lm_head"], "output head"),
        (["2-4"], "layers 0 to 3"),
        (["3-2"], "expected 2-3"),
        (["2-4@subject"], "layers 0 to 3"),
        (["0-1@sbject"], "expected nothing or @subject"),
        (["transformer.h.9.mlp.c_proj@subject"], "'transformer.h.9.mlp.c_proj'"),
        (["1@answer"], "'1@answer'"),
    ],
)
def test_unknown_modules_are_refused_with_what_exists(tiny_gpt2: Path, modules: list[str], message: str) -> None:
    with pytest.raises(UnknownModelError, match=message):
        load_model(str(tiny_gpt2), modules=modules)


@pytest.mark.parametrize(
    ("layers", "subject", "answer"),
    [
        (1, [], ["0-0"]),
        (2, ["0-0@subject"], ["1-1"]),
        (4, ["0-1@subject"], ["2-3"]),
        (6, ["0-2@subject"], ["3-5"]),
        (12, ["1-4@subject"], ["6-11"]),
        (28, ["7-10@subject"], ["22-27"]),
        (48, ["13-16@subject"], ["42-47"]),
    ],
)
def test_layers(layers: int, subject: list[str], answer: list[str]) -> None:
    """Golden: networks and stores are made for them, and stores that name no modules are made with the default."""
    assert (subject_layers(layers), default_layers(layers)) == (subject, answer)


def test_a_rule_of_one_layer_says_at_which_share_of_the_depth_it_lies() -> None:
    """Golden: 21 of 32 is published for fine-tuning, 27 of 32 for the codebook; there is always a layer."""
    assert [default_entries(layers, 2 / 3) for layers in (1, 2, 30, 32)] == [["0"], ["1"], ["20"], ["21"]]
    assert [default_entries(layers, 27 / 32) for layers in (1, 4, 32)] == [["0"], ["3"], ["27"]]


def test_what_is_remembered_of_a_text_as_a_whole_lies_higher_and_at_no_subject() -> None:
    """Of a classifier: the layer of neurons, chosen or tried. Others read the subject."""
    bert = FAMILIES["bert"]
    whole, masked = replace(bert, kind="classify"), replace(bert, kind="masked")
    assert [entries_of(whole, (layers, 0), "memory") for layers in (1, 4, 6, 12)] == [["0"], ["2"], ["3"], ["7"]]
    assert entries_of(masked, (6, 0), "memory") == ["3@subject"]
    assert (entries_up_to(5, "memory", "classify"), entries_up_to(5, "memory")) == (["5"], ["5-5@subject"])
    assert entries_of(whole, (6, 0), "answer") == ["3-5"]


def test_subject_layers_lie_beneath_the_others_about_a_third_of_the_way_up() -> None:
    for layers in range(2, 100):
        (subject,), (answer,) = subject_layers(layers), default_layers(layers)
        (first, last), (start, end) = (
            [int(n) for n in e.removesuffix("@subject").split("-")] for e in (subject, answer)
        )
        assert subject.endswith("@subject")
        assert 0 <= first <= last < start <= end == layers - 1
        assert last - first < MOST_SUBJECT_LAYERS
        assert end - start < MOST_LAYERS
        assert start >= layers // 2
        assert last <= layers / 3 + 1


def test_at_most_six_layers_by_default(tmp_path: Path, tiny_tokenizer: Any) -> None:
    config = transformers.GPT2Config(vocab_size=len(tiny_tokenizer), n_embd=8, n_layer=16, n_head=2, n_positions=16)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    found = load_model(str(tmp_path)).modules
    assert [(m.layer, m.positions) for m in found] == [(layer, "answer") for layer in range(10, 16)]


def test_unknown_model_type_names_the_known_ones_and_takes_modules_by_hand(tmp_path: Path, tiny_tokenizer: Any) -> None:
    config = transformers.BioGptConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    transformers.BioGptForCausalLM(config).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UnknownModelError, match=r"'biogpt'.*gpt2.*--modules"):
        load_model(str(tmp_path))
    with pytest.raises(UnknownModelError, match="name them in full"):
        load_model(str(tmp_path), modules=["1"])
    loaded = load_model(str(tmp_path), modules=["biogpt.layers.1.fc2"])
    assert [(m.name, m.layer, m.d_in, m.orientation) for m in loaded.modules] == [
        ("biogpt.layers.1.fc2", 1, 48, "linear")
    ]


def test_shift_of_wrong_shape_or_name_is_refused_before_any_weight_changes(tiny_gpt2: Path) -> None:
    loaded = load_model(str(tiny_gpt2))
    first, second = loaded.modules[:2]
    good = torch.ones(first.d_in, first.d_out)
    with (
        pytest.raises(ModelMismatchError, match=r"\(32, 128\).*\(128, 32\)"),
        loaded.at({first.name: good, second.name: good.T}),
    ):
        pytest.fail("a shift of another shape was taken")
    with (
        pytest.raises(UnknownModelError, match=first.name),
        loaded.at({first.name: good, "transformer.h.0.mlp.c_fc": good}),
    ):
        pytest.fail("a shift of an unknown module was taken")
    assert fingerprint_of(loaded.model) == loaded.fingerprint


def test_model_is_frozen(tiny_gpt2: Path) -> None:
    loaded = load_model(str(tiny_gpt2))
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert {type(loaded.model.get_submodule(m.name)) for m in loaded.modules} <= {Conv1D, nn.Linear}
