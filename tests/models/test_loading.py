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

from lifelong_edit.errors import LifelongEditError, ModelMismatchError, UsageError
from lifelong_edit.models import fingerprint_of, load_model
from lifelong_edit.numerics.devices import resolve_device, resolve_dtype

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
