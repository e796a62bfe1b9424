"""GGUF files of edited models: read back as the same model, by us and by transformers, or refused before loading."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from click.testing import CliRunner
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from lifelong_edit.cli import PROGRAM, cli
from lifelong_edit.errors import LifelongEditError, UsageError
from lifelong_edit.export import gguf as writing
from lifelong_edit.export.formats import FORMATS, export
from lifelong_edit.export.gguf_header import ARCHITECTURES, SAMPLES, require_sayable
from lifelong_edit.models import LoadedModel, Shifts, generate_greedy, load_model
from tests.zoo import LLAMA, Zoo

PROMPTS = ["The capital of France is", "Ada Lovelace was born"]
GPT2 = {"n_positions": 64, "n_embd": 32, "n_layer": 4, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
OPTIONS: dict[str, dict[str, Any]] = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "mistral": {**LLAMA, "sliding_window": None},
    "qwen2": LLAMA,
    "qwen3": {**LLAMA, "head_dim": 128},
    "gemma3_text": {**LLAMA, "head_dim": 256, "sliding_window": 8, "tie_word_embeddings": True},
}


def made(name: str, zoo: Zoo, tokenizer: Any, seed: int = 3, **more: Any) -> str:
    options = {"vocab_size": len(tokenizer), **OPTIONS[name], "bos_token_id": 0, "eos_token_id": 0, **more}
    return str(zoo.model(name, options, tokenizer, seed=seed))


def shifts_of(loaded: LoadedModel, size: float = 0.05) -> Shifts:
    generator = torch.Generator().manual_seed(2)
    return Shifts({m.name: torch.randn(m.d_in, m.d_out, generator=generator) * size for m in loaded.modules})


@pytest.fixture(params=[*ARCHITECTURES, "gpt2 made wider"])
def source(request: pytest.FixtureRequest, zoo: Zoo, tiny_tokenizer: Any) -> str:
    name, _, wider = request.param.partition(" ")
    return made(name, zoo, tiny_tokenizer, **({"n_inner": 160} if wider else {}))


def test_what_is_read_back_is_the_state(source: str, tmp_path: Path) -> None:
    require_sayable(source)
    loaded = load_model(source)
    shifts = shifts_of(loaded)
    told = export("gguf", loaded, shifts, tmp_path / "out", questions=PROMPTS)["gguf"]
    assert told["type"] == "F32" and told["error"] < 1e-7 and (told["asked"], told["differ"]) == (2, 0)
    read, state = load_model(str(tmp_path / "out")), loaded.edited_copy(shifts.shifts)
    assert read.context == loaded.context and read.modules == loaded.modules
    for text in SAMPLES:
        assert read.tokenizer(text)["input_ids"] == loaded.tokenizer(text)["input_ids"]
    ids = loaded.tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        wanted = state(ids).logits
        assert not torch.allclose(wanted, loaded.model(ids).logits, atol=1e-2)
        torch.testing.assert_close(read.model(ids).logits, wanted, atol=1e-4, rtol=1e-4)
    with loaded.at(shifts):
        assert generate_greedy(read, PROMPTS, 6) == generate_greedy(loaded, PROMPTS, 6)


def test_transformers_reads_it_by_itself(zoo: Zoo, tiny_tokenizer: Any, tmp_path: Path) -> None:
    loaded = load_model(made("llama", zoo, tiny_tokenizer))
    shifts = shifts_of(loaded)
    export("gguf", loaded, shifts, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="model.gguf", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out", gguf_file="model.gguf")
    state, ids = loaded.edited_copy(shifts.shifts), tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        torch.testing.assert_close(model(ids).logits, state(ids).logits)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "q8_0"])
def test_in_the_dtype_that_is_asked_for(dtype: str, zoo: Zoo, tiny_tokenizer: Any, tmp_path: Path) -> None:
    """Matrices alone are in it. Of packed ones the error is told, which is that of eight bits for a block's largest."""
    loaded = load_model(made("llama", zoo, tiny_tokenizer))
    shifts = shifts_of(loaded)
    told = export("gguf", loaded, shifts, tmp_path / "out", dtype=dtype)["gguf"]
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "out" / "model.gguf").tensors}
    wanted = {"float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}[dtype]
    assert told["type"] == types["blk.3.attn_q.weight"] == wanted and types["output_norm.weight"] == "F32"
    # 48 numbers a row cannot be cut into blocks of 32.
    assert types["blk.3.ffn_down.weight"] == ("F16" if dtype == "q8_0" else wanted)
    name = "model.layers.3.self_attn.q_proj.weight"
    found = load_model(str(tmp_path / "out")).model.get_parameter(name)
    exact = loaded.model.get_parameter(name)
    if dtype == "q8_0":
        assert 0 < told["error"] < 0.02 and 0 < (found - exact).abs().max() <= exact.abs().max() / 127
    else:
        assert told["error"] == 0 and torch.equal(found, exact.to(getattr(torch, dtype)).float())


def test_a_chat_template_and_the_end_of_a_turn_come_along(zoo: Zoo, chat_tokenizer: Any, tmp_path: Path) -> None:
    loaded = load_model(made("qwen2", zoo, chat_tokenizer))
    end = chat_tokenizer.convert_tokens_to_ids("<|im_end|>")
    loaded.model.generation_config.eos_token_id = [0, end]
    export("gguf", loaded, Shifts({}), tmp_path / "out")
    read = load_model(str(tmp_path / "out"))
    assert read.tokenizer.chat_template == chat_tokenizer.chat_template
    assert read.tokenizer("<|im_end|>")["input_ids"] == [end]
    field = gguf.GGUFReader(tmp_path / "out" / "model.gguf").get_field("tokenizer.ggml.eot_token_id")
    assert field is not None and field.contents() == end


def pieces(sentences: list[str]) -> Any:
    """A tokenizer as Gemma's: pieces with a mark for a blank, bytes for what is no piece."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(sentences * 4, trainer)
    made = json.loads(tokenizer.to_str())
    made["added_tokens"] = made["added_tokens"][:4]  # bytes are pieces
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(made)), **names)


def test_pieces_are_merged_in_the_order_of_their_scores(zoo: Zoo, sentences: list[str], tmp_path: Path) -> None:
    tokenizer = pieces(sentences)
    loaded = load_model(made("gemma3_text", zoo, tokenizer))
    export("gguf", loaded, Shifts({}), tmp_path / "out", questions=PROMPTS)
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")

    def told(name: str) -> Any:
        field = reader.get_field(f"tokenizer.ggml.{name}")
        assert field is not None
        return field.contents()

    assert told("model") == "llama"
    scores = dict(zip(told("tokens"), told("scores"), strict=True))
    merges = ["".join(pair.split(" ")) for pair in told("merges")]
    assert len(merges) > 20 and [scores[m] for m in merges] == sorted((scores[m] for m in merges), reverse=True)


# -- what is refused


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "rope_parameters"),
        ("llama", {"attention_bias": True}, "attention_bias"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act"),
        ("mistral", {"sliding_window": 8}, "sliding_window"),
        ("gpt2", {"activation_function": "relu"}, "activation_function"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("qwen3", {"head_dim": 16}, "head_dim"),
        ("gemma3_text", {"query_pre_attn_scalar": 64}, "query_pre_attn_scalar"),
    ],
)
def test_a_configuration_that_would_be_lost(
    name: str, more: dict[str, Any], message: str, zoo: Zoo, tiny_tokenizer: Any
) -> None:
    with pytest.raises(UsageError, match=rf"its {message} is .*read back as .*--format transformers") as refused:
        require_sayable(made(name, zoo, tiny_tokenizer, **more))
    assert "\n" not in str(refused.value)


def test_tokenizers_that_files_cannot_say(zoo: Zoo, sentences: list[str], tiny_tokenizer: Any) -> None:
    def with_parts(**parts: Any) -> Any:
        found = Tokenizer.from_str(tiny_tokenizer.backend_tokenizer.to_str())
        for name, part in parts.items():
            setattr(found, name, part)
        end = "<|endoftext|>"
        return PreTrainedTokenizerFast(tokenizer_object=found, bos_token=end, eos_token=end, pad_token=end)

    words = Tokenizer(models.WordLevel(unk_token="<|endoftext|>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.train_from_iterator(sentences, trainers.WordLevelTrainer(special_tokens=["<|endoftext|>"]))
    wordly = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    blank = pre_tokenizers.ByteLevel(add_prefix_space=True)
    for seed, (tokenizer, message) in enumerate(
        (
            (wordly, "type WordLevel, expected BPE"),
            (with_parts(pre_tokenizer=blank), "no name for"),
            (with_parts(normalizer=normalizers.Lowercase()), "read back as other tokens"),
        ),
        start=10,
    ):
        with pytest.raises(UsageError, match=message):
            require_sayable(made("llama", zoo, tokenizer, seed))


def test_a_type_that_is_not_known_is_refused_before_anything_is_loaded(zoo: Zoo, tiny_tokenizer: Any) -> None:
    source = str(zoo.model("olmo", {"vocab_size": len(tiny_tokenizer), **LLAMA}, tiny_tokenizer, seed=3))
    (Path(source) / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UsageError, match=r"a olmo model cannot be exported as gguf; types that can: gpt2, llama"):
        FORMATS["gguf"].require_model(source)


def test_a_configuration_that_cannot_be_read_is_one_sentence(tmp_path: Path, tiny_gpt2: Path) -> None:
    shutil.copytree(tiny_gpt2, tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "of the future"}')
    with pytest.raises(LifelongEditError, match="cannot load model") as refused:
        require_sayable(str(tmp_path / "model"))
    assert "\n" not in str(refused.value)


def test_a_packing_is_no_dtype_of_another_format(tiny_gpt2: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["export", "--dtype", "q8_0", "--out", str(tmp_path / "out")], prog_name=PROGRAM)
    assert result.exit_code == 2 and "--dtype q8_0, but this format packs nothing" in result.output
    with pytest.raises(UsageError, match=r"found the dtype 'int4'"):
        export("gguf", load_model(str(tiny_gpt2)), Shifts({}), tmp_path / "out", dtype="int4")


def test_another_number_in_the_file_is_found(tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a matrix that is not turned round, which has the same shape where it is square."""
    loaded = load_model(str(tiny_gpt2))
    form = ARCHITECTURES["gpt2"]
    wrong = replace(form, stored=lambda name, t, c: t if "attn_output" in name else form.stored(name, t, c))
    monkeypatch.setattr(writing, "architecture_of", lambda config: wrong)
    with pytest.raises(LifelongEditError, match=r"attn\.c_proj\.weight is read back as other numbers"):
        export("gguf", loaded, Shifts({}), tmp_path / "out")
    assert not (tmp_path / "out").exists()
