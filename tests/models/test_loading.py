"""Where models come from, what is refused at the door, and how one base model is told from another."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from lifelong_edit.errors import BadInputError, LifelongEditError, ModelMismatchError, UsageError
from lifelong_edit.models import fingerprint_of, generate_greedy, load_model, tokenizer_fingerprint
from lifelong_edit.numerics.devices import resolve_device, resolve_dtype
from tests.zoo import DECODERS, Zoo, with_vocabulary

RUN_CODE = "import os; os.system('touch {marker}')"


@pytest.fixture
def copy(tiny_gpt2: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_gpt2, folder)
    return folder


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_says_where_there_is_no_model(tmp_path: Path) -> None:
    for source in (str(tmp_path / "nothing"), "./nothing", "nothing"):
        with pytest.raises(UsageError, match="no model at"):
            load_model(source)
    with pytest.raises(UsageError, match=r"config\.json"):
        load_model(str(tmp_path))
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="no model at"):
        load_model(str(tmp_path / "file"))


def test_hub_id_without_network_is_one_sentence() -> None:
    code = "from lifelong_edit.models import load_model; load_model('no-such-owner/no-such-model')"
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert run.stderr.splitlines()[-1].startswith(
        "lifelong_edit.errors.LifelongEditError: cannot load model 'no-such-owner/no-such-model': "
    )


def test_pickled_weights_are_refused_unread(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(LifelongEditError, match=r"pytorch_model\.bin.*\*\.safetensors or \*\.gguf only"):
        load_model(str(copy))


def test_code_of_others_only_at_a_pinned_revision_and_never_unasked(copy: Path, tmp_path: Path) -> None:
    for revision in (None, "main", "v1.0"):
        with pytest.raises(UsageError, match="--revision"):
            load_model(str(copy), trust_remote_code=True, revision=revision)
    marker = tmp_path / "ran"
    (copy / "evil.py").write_text(RUN_CODE.format(marker=marker))
    change_config(copy, model_type="evil", auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    with pytest.raises(LifelongEditError, match="cannot load model"):
        load_model(str(copy))
    assert not marker.exists()


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/etc/passwd", "sub/part.safetensors", "weights.bin", 7, "..", None]
)
def test_index_that_names_files_elsewhere_is_refused(copy: Path, name: object) -> None:
    (copy / "model.safetensors").rename(copy / "part.safetensors")
    shutil.copy(copy / "part.safetensors", copy.parent / "outside.safetensors")
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"transformer.wte.weight": name}}))
    with pytest.raises(LifelongEditError, match=r"expected a \*\.safetensors file beside it"):
        load_model(str(copy))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', "[" * 100_000])
def test_damaged_index_is_refused(copy: Path, text: str) -> None:
    (copy / "model.safetensors.index.json").write_text(text)
    with pytest.raises(LifelongEditError, match="is damaged"):
        load_model(str(copy))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:20],
        lambda data: data[:-100],
        lambda data: struct.pack("<Q", 2**62) + data[8:],
        lambda data: struct.pack("<Q", 10) + b"[" * 10 + data[18:],
        lambda data: data.replace(b'"F32"', b'"F99"'),
        lambda data: b"\x80\x04\x95" + data,
    ],
)
def test_damaged_weights_are_refused_in_one_sentence(copy: Path, damage: Any) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(LifelongEditError, match="cannot load model") as caught:
        load_model(str(copy))
    assert "\n" not in str(caught.value)


def test_missing_or_misshapen_weights_are_refused_not_made_up(copy: Path) -> None:
    path = copy / "model.safetensors"
    tensors = load_file(path)
    name = "transformer.h.2.mlp.c_proj.weight"
    save_file({k: v for k, v in tensors.items() if k != name}, path, metadata={"format": "pt"})
    with pytest.raises(LifelongEditError, match=name.replace(".", r"\.")):
        load_model(str(copy))
    save_file(tensors | {name: tensors[name][:-1].contiguous()}, path, metadata={"format": "pt"})
    with pytest.raises(LifelongEditError, match=r"1 are missing or have another shape, first .*h\.2\.mlp"):
        load_model(str(copy))
    change_config(copy, n_embd=64)
    with pytest.raises(LifelongEditError, match="have another shape"):
        load_model(str(copy))


def test_model_without_tokenizer_is_refused(copy: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    with pytest.raises(LifelongEditError, match="without a tokenizer"):
        load_model(str(copy))


def test_fingerprint_is_of_the_weights_alone(copy: Path, tiny_gpt2: Path) -> None:
    base = load_model(str(tiny_gpt2)).fingerprint
    path = copy / "model.safetensors"
    tensors = load_file(path)
    # The same weights in other files: another order of names and, tied to the embedding, the head repeated.
    tied = tensors | {"lm_head.weight": tensors["transformer.wte.weight"].clone()}
    save_file(dict(reversed(tied.items())), path, metadata={"format": "pt"})
    change_config(copy, embd_pdrop=0.3)
    assert load_model(str(copy)).fingerprint == base
    GPT2LMHeadModel.from_pretrained(copy).save_pretrained(copy, max_shard_size="50KB")
    path.unlink(missing_ok=True)
    assert len(list(copy.glob("*.safetensors"))) > 1
    assert load_model(str(copy)).fingerprint == base
    assert load_model(str(tiny_gpt2), modules=["0"]).fingerprint == base


def test_fingerprint_tells_weights_names_types_and_dtypes_apart(tiny_gpt2: Path) -> None:
    loaded = load_model(str(tiny_gpt2))
    base = loaded.fingerprint
    assert load_model(str(tiny_gpt2), dtype="bfloat16").fingerprint != base
    weight = loaded.model.transformer.h[0].ln_1.weight
    kept = float(weight[0])
    weight[0] = torch.nextafter(weight[0], torch.tensor(9.0))
    assert fingerprint_of(loaded.model) != base
    weight[0] = kept
    assert fingerprint_of(loaded.model) == base
    one, other = loaded.model.transformer.h[0].ln_1, loaded.model.transformer.h[0].ln_2
    one.weight.fill_(0.5), other.weight.fill_(0.25)
    first = fingerprint_of(loaded.model)
    one.weight.fill_(0.25), other.weight.fill_(0.5)
    assert fingerprint_of(loaded.model) != first
    prints = []
    for name in ("a", "b"):
        model = torch.nn.Module()
        model.register_parameter(name, torch.nn.Parameter(torch.ones(2)))
        model.config = loaded.model.config
        prints.append(fingerprint_of(model))
    assert prints[0] != prints[1]
    loaded.model.config.model_type = "other"
    assert fingerprint_of(loaded.model) != first


def test_another_base_is_refused_with_both_fingerprints(tiny_gpt2: Path) -> None:
    loaded = load_model(str(tiny_gpt2))
    loaded.require_fingerprint(loaded.fingerprint)
    with pytest.raises(ModelMismatchError) as caught:
        loaded.require_fingerprint("0" * 32)
    assert loaded.fingerprint in str(caught.value) and "0" * 32 in str(caught.value)


def test_fingerprint_of_half_a_gigabyte_takes_seconds_at_most() -> None:
    """About a second on an idle core; the bound leaves room for a busy one, not for a detour through Python objects."""
    model = torch.nn.Linear(12_500, 10_000)
    model.config = GPT2Config()
    begin = time.process_time()
    fingerprint_of(model)
    assert time.process_time() - begin < 5


def test_base_weights_survive_whatever_is_set(tiny_gpt2: Path) -> None:
    loaded = load_model(str(tiny_gpt2))
    name = loaded.modules[0].name
    before = loaded.base_weight(name).clone()
    for size in (1e-8, 1e3, float("nan")):
        with loaded.at({name: torch.full(tuple(before.shape), size)}):
            assert torch.equal(loaded.base_weight(name), before)
            assert fingerprint_of(loaded.model) != loaded.fingerprint
    assert torch.equal(loaded.base_weight(name), before)
    assert fingerprint_of(loaded.model) == loaded.fingerprint


def test_context_bounds_the_tokenizer(tiny_gpt2: Path) -> None:
    assert load_model(str(tiny_gpt2)).tokenizer.model_max_length == 64


def test_devices_and_dtypes() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device(torch.device("cpu")) == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda")
    with pytest.raises(UsageError, match="unknown device"):
        resolve_device("quantum")
    with pytest.raises(UsageError, match="not supported"):
        resolve_device("meta")
    assert resolve_dtype("bfloat16", torch.device("cpu")) is torch.bfloat16
    assert resolve_dtype(torch.float32, torch.device("cpu")) is torch.float32
    assert resolve_dtype("float16", torch.device("cuda")) is torch.float16
    with pytest.raises(UsageError, match="accelerator"):
        resolve_dtype("float16", torch.device("cpu"))
    with pytest.raises(UsageError, match="unknown dtype"):
        resolve_dtype("int8", torch.device("cpu"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_absent_device_is_named() -> None:
    with pytest.raises(UsageError, match="no CUDA device here; use --device cpu"):
        resolve_device("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_accelerator_answers_as_the_cpu_does(tiny_gpt2: Path) -> None:
    from lifelong_edit.models import generate_greedy

    here, there = load_model(str(tiny_gpt2)), load_model(str(tiny_gpt2), device="cuda")
    assert there.fingerprint == here.fingerprint
    module = there.modules[0]
    shift = {module.name: torch.full((module.d_in, module.d_out), 0.01)}
    with here.at(shift), there.at(shift):
        assert generate_greedy(here, ["The capital of"], 6) == generate_greedy(there, ["The capital of"], 6)
    with pytest.raises(UsageError, match="CUDA devices"):
        resolve_device("cuda:99")


# -- nothing of a checkpoint is left out in silence


def add(folder: Path, **tensors: torch.Tensor) -> None:
    path = folder / "model.safetensors"
    more = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file(load_file(path) | more, path, metadata={"format": "pt"})


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_beside_the_weights_is_refused(copy: Path, name: str) -> None:
    (copy / name).write_text("{}")
    with pytest.raises(LifelongEditError, match=rf"has {name} beside the weights.*merge the adapter"):
        load_model(str(copy))


def test_more_layers_than_the_configuration_says_are_refused(copy: Path) -> None:
    change_config(copy, n_layer=3)
    with pytest.raises(
        LifelongEditError, match=r"no place, first transformer\.h\.3\.attn\.c_attn\.bias; correct config"
    ):
        load_model(str(copy))


def test_tensors_without_a_place_are_refused_but_known_buffers_are_not(copy: Path) -> None:
    base = load_model(str(copy)).fingerprint
    add(
        copy, transformer__h__0__attn__bias=torch.ones(1, 1, 64, 64), transformer__h__0__attn__masked_bias=torch.ones(1)
    )
    add(copy, rotary_emb__inv_freq=torch.ones(4))
    found = load_model(str(copy))
    assert (found.fingerprint, found.left_out) == (base, ())
    add(copy, score__weight=torch.ones(2, 32))
    with pytest.raises(
        LifelongEditError, match=r"holds 1 tensors for which its configuration has no place, first score"
    ):
        load_model(str(copy))


def test_what_sees_or_guesses_ahead_beside_the_language_model_is_named(copy: Path) -> None:
    add(copy, vision_tower__layers__0__weight=torch.ones(2), model__visual__patch__weight=torch.ones(2))
    add(copy, mtp__layers__0__weight=torch.ones(2))
    assert load_model(str(copy)).left_out == ("model.visual", "mtp", "vision_tower")


def test_what_a_class_says_to_ignore_is_named_too(zoo: Zoo, tiny_tokenizer: Any, tmp_path: Path) -> None:
    """transformers does not tell these at all: Qwen3.5's own class ignores `mtp`."""
    options = with_vocabulary(DECODERS["qwen3_5"], tiny_tokenizer)
    folder = zoo.model("qwen3_5", options, tiny_tokenizer, seed=1)
    shutil.copytree(folder, tmp_path / "copy")
    add(tmp_path / "copy", mtp__layers__0__mlp__down_proj__weight=torch.ones(2))
    assert load_model(str(tmp_path / "copy")).left_out == ("mtp",)


def test_quantised_weights_are_refused_with_what_to_load_instead(copy: Path) -> None:
    add(copy, transformer__h__1__mlp__c_fc__weight_scale=torch.ones(1))
    with pytest.raises(LifelongEditError, match=r"c_fc\.weight_scale.*full precision, or a GGUF"):
        load_model(str(copy))
    for method in ("gptq", "awq", "fp8", "bitsandbytes", "mxfp4"):
        change_config(copy, quantization_config={"quant_method": method, "bits": 4})
        with pytest.raises(LifelongEditError, match=rf"quantised by {method}.*full precision, or a GGUF"):
            load_model(str(copy))


def test_tokens_beyond_the_embedding_are_refused_at_once(copy: Path) -> None:
    from transformers import AddedToken, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(copy)
    rows = len(tokenizer)
    tokenizer.add_tokens([AddedToken("<image>", special=True)])
    tokenizer.save_pretrained(copy)
    loaded = load_model(str(copy))  # no ordinary text has it
    with pytest.raises(BadInputError, match=rf"'<image>'.*number {rows}.*rows 0 to {rows - 1}"):
        generate_greedy(loaded, ["What is <image>"], 3)
    tokenizer.add_tokens(["Zubrowka"])
    tokenizer.save_pretrained(copy)
    with pytest.raises(LifelongEditError, match=rf"'Zubrowka' with number {rows + 1}.*rows 0 to {rows - 1}"):
        load_model(str(copy))


# -- the fingerprint of the tokenizer


def test_the_tokenizers_fingerprint_is_of_what_makes_tokens(copy: Path, tiny_gpt2: Path) -> None:
    from transformers import AutoTokenizer

    def found() -> str:
        return tokenizer_fingerprint(AutoTokenizer.from_pretrained(copy))

    base = load_model(str(tiny_gpt2))
    first = tokenizer_fingerprint(base.tokenizer)
    base.tokenizer(["a", "a longer text"], padding=True, truncation=True, max_length=5)
    assert found() == tokenizer_fingerprint(base.tokenizer) == first
    path = copy / "tokenizer.json"
    told = json.loads(path.read_text())
    for change in (
        lambda t: t["model"]["merges"].reverse(),
        lambda t: t["pre_tokenizer"].update(add_prefix_space=True),
        lambda t: t.update(normalizer={"type": "Lowercase"}),
        lambda t: t["added_tokens"][0].update(lstrip=True),
    ):
        changed = json.loads(json.dumps(told))
        change(changed)
        path.write_text(json.dumps(changed))
        assert found() != first
    path.write_text(json.dumps(told, indent=2))
    assert found() == first
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    assert found() != first
    base.require_tokenizer(None)
    with pytest.raises(ModelMismatchError, match=rf"{first}, expected {'0' * 32}"):
        base.require_tokenizer("0" * 32)
