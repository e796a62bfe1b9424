"""Models from GGUF files: dequantised, whole or refused, and exported as any other."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lifelong_edit.errors import LifelongEditError, UsageError
from lifelong_edit.export.formats import export
from lifelong_edit.models import Shifts, fingerprint_of, generate_greedy, load_model
from lifelong_edit.models.loading import kind_and_width
from tests.models import packed

PROMPTS = ["The capital of France is", "Ada Lovelace was born"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A GGUF file with a tiny Llama."""
    folder = tmp_path_factory.mktemp("gguf")
    return packed.write(packed.llama(len(tiny_tokenizer)), tiny_tokenizer, folder / "tiny.gguf")


def test_a_file_and_a_folder_with_one_are_the_model_that_was_packed(written: Path, tiny_tokenizer: Any) -> None:
    loaded = load_model(str(written))
    assert loaded.fingerprint == load_model(str(written.parent)).fingerprint
    assert (loaded.context, [m.layer for m in loaded.modules]) == (64, [2, 3])
    model = packed.llama(len(tiny_tokenizer))
    ids = torch.tensor([tiny_tokenizer(PROMPTS[0])["input_ids"]])
    torch.testing.assert_close(loaded.model(ids).logits, model(ids).logits, rtol=0.02, atol=0.05)
    for name, parameter in model.named_parameters():
        found = loaded.model.get_parameter(name)
        if "down_proj" in name:  # eight bits for the largest of a block
            assert 0 < (found - parameter).abs().max() <= parameter.abs().max() / 127
        else:
            assert torch.equal(found, parameter)


def test_a_repository_with_nothing_else_is_loaded_from_the_hubs_cache(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a hub id where it holds one file, and by the file's name; where it holds several, one has to be named."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    here = tmp_path / "models--maker--tiny-GGUF"
    snapshot = here / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (here / "refs").mkdir()
    (here / "refs" / "main").write_text(commit)
    shutil.copy(written, snapshot / "tiny-Q8_0.gguf")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    fingerprint = load_model(str(written)).fingerprint
    for source in ("maker/tiny-GGUF", "maker/tiny-GGUF/tiny-Q8_0.gguf"):
        loaded = load_model(source)
        assert (loaded.fingerprint, loaded.source) == (fingerprint, source)
    assert kind_and_width("maker/tiny-GGUF") == ("causal", loaded.modules[0].d_out)
    shutil.copy(written, snapshot / "tiny-F16.gguf")
    with pytest.raises(UsageError, match=r"2 GGUF files .* such as maker/tiny-GGUF/tiny-F16\.gguf"):
        load_model("maker/tiny-GGUF")
    with pytest.raises(LifelongEditError, match=r"cannot have other\.gguf of maker/tiny-GGUF"):
        load_model("maker/tiny-GGUF/other.gguf")
    with pytest.raises(LifelongEditError, match="maker/none"):
        load_model("maker/none")


def test_its_tokenizer_comes_along(written: Path, tiny_tokenizer: Any) -> None:
    loaded = load_model(str(written))
    for text in PROMPTS:
        assert loaded.tokenizer(text, add_special_tokens=False)["input_ids"] == tiny_tokenizer(text)["input_ids"]
        assert loaded.tokenizer(text)["input_ids"] == [0, *tiny_tokenizer(text)["input_ids"]]
    assert loaded.tokenizer.chat_template == packed.TEMPLATE
    assert (loaded.tokenizer.bos_token_id, loaded.tokenizer.eos_token_id) == (0, 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_its_export_is_a_folder_in_full_precision(written: Path, tmp_path: Path, dtype: str) -> None:
    loaded = load_model(str(written), dtype=dtype)
    shifts = {m.name: torch.full((m.d_in, m.d_out), 0.02) for m in loaded.modules}
    with loaded.at(shifts):
        answers = generate_greedy(loaded, PROMPTS, 5)
    export("transformers", loaded, Shifts(shifts), tmp_path / "out")
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "out"),
        AutoTokenizer.from_pretrained(tmp_path / "out"),
    )
    assert not hasattr(model.config, "quantization_config")
    assert fingerprint_of(model) == fingerprint_of(loaded.edited_copy(shifts))
    assert tokenizer.chat_template == packed.TEMPLATE
    assert generate_greedy(load_model(str(tmp_path / "out"), dtype=dtype), PROMPTS, 5) == answers


def test_it_is_saved_where_transformers_takes_it_for_packed(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Releases that cannot be told to unpack do so all the same, and go on to call the model quantised."""
    monkeypatch.setattr("lifelong_edit.models.loading._UNPACKED", {})
    loaded = load_model(str(written))
    assert not getattr(loaded.model, "is_quantized", False) and not hasattr(loaded.model.config, "quantization_config")
    export("transformers", loaded, Shifts({}), tmp_path / "out")
    assert load_model(str(tmp_path / "out")).fingerprint == loaded.fingerprint


def test_nothing_is_printed(written: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_model(str(written))
    assert capfd.readouterr() == ("", "")


def test_a_layer_or_a_weight_that_would_be_left_out_is_refused(tmp_path: Path, tiny_tokenizer: Any) -> None:
    model = packed.llama(len(tiny_tokenizer))
    for name, message in (
        ("blk.4.ffn_up.weight", r"blk\.4\.ffn_up\.weight.*layers 0 to 3"),
        ("blk.0.exp_probs_b.bias", "of which transformers makes"),
        ("rope_freqs.weight", r"rope_freqs\.weight.*load the model's safetensors"),
    ):
        path = tmp_path / f"{name}.gguf"
        packed.write(model, tiny_tokenizer, path, lambda w, name=name: w.add_tensor(name, np.ones((4, 32), np.float32)))
        with pytest.raises(LifelongEditError, match=message):
            load_model(str(path))


def test_stretched_positions_parts_and_unknown_architectures_are_refused(tmp_path: Path, tiny_tokenizer: Any) -> None:
    def stretched(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)

    def part(writer: gguf.GGUFWriter) -> None:
        writer.add_uint16("split.count", 2)

    model = packed.llama(len(tiny_tokenizer))
    for more, message in ((stretched, r"llama\.rope\.scaling\.type"), (part, "llama-gguf-split --merge")):
        path = packed.write(model, tiny_tokenizer, tmp_path / f"{more.__name__}.gguf", more)
        with pytest.raises(LifelongEditError, match=message):
            load_model(str(path))
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "rwkv6")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(LifelongEditError, match=r"architecture 'rwkv6', but transformers reads .*llama"):
        load_model(str(tmp_path / "other.gguf"))


def test_several_files_are_none_of_them(written: Path, tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(written, tmp_path / name)
    with pytest.raises(UsageError, match=r"2 GGUF files \(a\.gguf, b\.gguf\): name one"):
        load_model(str(tmp_path))
    assert load_model(str(tmp_path / "b.gguf")).context == 64


@pytest.mark.parametrize("cut", [0, 3, 20, 100, 3000, -4000])
def test_a_damaged_file_is_one_sentence(written: Path, tmp_path: Path, cut: int) -> None:
    (tmp_path / "cut.gguf").write_bytes(written.read_bytes()[:cut])
    with pytest.raises(LifelongEditError, match=r"damaged|cannot load") as caught:
        load_model(str(tmp_path / "cut.gguf"))
    assert "\n" not in str(caught.value)


def test_without_the_package_it_is_one_sentence(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "gguf" else real(name, *rest))
    with pytest.raises(LifelongEditError, match=r"package gguf.*pip install 'lifelong-edit\[gguf\]'"):
        load_model(str(written))
