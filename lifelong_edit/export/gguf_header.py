"""What a GGUF file says of a model beside its weights: architecture, configuration, tokenizer, chat template.

All of it is written and read back before any weights are loaded, so that what the format cannot say is known in time:
a GGUF file names numbers that llama.cpp expects of an architecture, and whatever else a configuration says is lost.
Names and their meaning: the GGUF specification and the constants of the package `gguf`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from lifelong_edit.errors import UsageError
from lifelong_edit.models.loading import load_config, load_tokenizer
from lifelong_edit.models.quiet import quiet_transformers

FILE = "model.gguf"
"""The file of an export: all of a model."""
SAMPLES = (
    "The capital of France is Paris, since 987.",
    " two  blanks\tand a tab\n\nlines; it's 12,345.67 %",
    "naïve Zürich – 東京 Ελλάδα 🙂",
    "def f(x):\n    return x[0] != 'y'",
)
"""Texts of which both tokenizers have to make the same tokens."""
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_SPM = "\u2581"
# What a configuration says besides what a model computes: how it was trained, saved and asked.
_BESIDE = (
    "architectures model_type vocab_size transformers_version dtype torch_dtype initializer_range initializer_factor "
    "use_cache cache_implementation attention_dropout attn_pdrop embd_pdrop resid_pdrop pretraining_tp is_local "
    "task_specific_params n_ctx feed_forward_length tie_word_embeddings reorder_and_upcast_attn max_window_layers "
    "bos_token_id eos_token_id pad_token_id unk_token_id id2label label2id return_dict chunk_size_feed_forward "
    "quantization_config add_cross_attention name_or_path local_files_only"
)
_TANH = "gelu with tanh"


@dataclass(frozen=True)
class Architecture:
    """How models of a type are put into GGUF files. name: in llama.cpp's words.

    stored: a parameter as the file has it, from its name in the file, itself and the configuration. about: what the
    file says beside `_common`.
    """

    name: str
    stored: Callable[[str, Tensor, Any], Tensor]
    about: Callable[[gguf.GGUFWriter, Any], None]


def _as_it_is(name: str, tensor: Tensor, config: Any) -> Tensor:
    return tensor


def _halves_as_neighbours(name: str, tensor: Tensor, config: Any) -> Tensor:
    """llama.cpp turns neighbouring numbers of queries and keys by their positions, transformers halves of a head."""
    heads = {"attn_q.": config.num_attention_heads, "attn_k.": config.num_key_value_heads}
    for part, count in heads.items():
        if part in name:
            return tensor.reshape(count, 2, -1, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)
    return tensor


def _turned(name: str, tensor: Tensor, config: Any) -> Tensor:
    """GPT-2 keeps its matrices as (d_in, d_out), llama.cpp all of them as (d_out, d_in)."""
    inner = ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")
    return tensor.T if name.endswith(inner) else tensor


def _norms_from_zero(name: str, tensor: Tensor, config: Any) -> Tensor:
    """Gemma multiplies by 1 + w, llama.cpp by what it reads."""
    return tensor.float() + 1 if name.endswith("norm.weight") else tensor


def _about_gpt2(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)


def _about_llama(writer: gguf.GGUFWriter, config: Any) -> None:
    head = config.head_dim or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(head)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_vocab_size(config.vocab_size)
    _about_rotated(writer, config)


def _about_rotated(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(float((config.rope_parameters or {}).get("rope_theta", 10_000.0)))


def _about_qwen3(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    _about_rotated(writer, config)


def _about_gemma3(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_sliding_window(config.sliding_window)
    whole = (config.rope_parameters or {}).get("full_attention", {})
    writer.add_rope_freq_base(float(whole.get("rope_theta", 1_000_000.0)))


ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": Architecture("gpt2", _turned, _about_gpt2),
    "llama": Architecture("llama", _halves_as_neighbours, _about_llama),
    "mistral": Architecture("llama", _halves_as_neighbours, _about_llama),
    "qwen2": Architecture("qwen2", _as_it_is, _about_rotated),
    "qwen3": Architecture("qwen3", _as_it_is, _about_qwen3),
    "gemma3_text": Architecture("gemma3", _norms_from_zero, _about_gemma3),
}
"""How to write models, by `config.model_type`."""


def architecture_of(config: Any) -> Architecture:
    """How a model is written. Raises UsageError for a type that is not known here."""
    found = ARCHITECTURES.get(config.model_type)
    if found is None:
        raise UsageError(
            f"a {config.model_type} model cannot be exported as gguf; types that can: {', '.join(ARCHITECTURES)}; "
            "take --format transformers"
        )
    return found


def require_sayable(source: str, revision: str | None = None) -> None:
    """Refuse, before any weights are loaded, a model that would be read back as another one.

    Its header is written, and read back as transformers reads such files: its configuration, field by field, and the
    tokens of `SAMPLES`. Raises UsageError for a model type, a configuration or a tokenizer that the format cannot say.
    """
    config = load_config(source, revision)
    name, tokenizer = architecture_of(config).name, load_tokenizer(source, revision)
    with tempfile.TemporaryDirectory() as folder, quiet_transformers():
        # Without the tokens, which transformers reads slowly and takes for the size of the vocabulary alone.
        path = Path(folder) / "config.gguf"
        writer = gguf.GGUFWriter(path, name)
        _write_config(writer, config, "")
        finish(writer)
        require_config(config, load_config(str(path)))
        writer = gguf.GGUFWriter(Path(folder) / FILE, name)
        _write_tokenizer(writer, tokenizer, config.vocab_size)
        finish(writer)
        require_tokens(tokenizer, PreTrainedTokenizerFast.from_pretrained(folder, gguf_file=FILE))


def finish(writer: gguf.GGUFWriter) -> None:
    """Write what was added to the file, and close it, also where the disk is full. Raises OSError."""
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.flush()
    finally:
        for file in writer.fout or ():
            with suppress(OSError):
                file.close()


def require_config(config: Any, read: Any) -> None:
    """Raise UsageError where a configuration, read back, says another thing of what a model computes."""
    own, found = _as_compared(config), _as_compared(read)
    for name in sorted(own.keys() | found.keys()):
        if not _same(own.get(name), found.get(name)):
            raise UsageError(
                f"this {config.model_type} model cannot be exported as gguf: its {name} is {own.get(name)!r}, and "
                f"would be read back as {found.get(name)!r}; take --format transformers"
            )


def require_tokens(tokenizer: Any, read: Any) -> None:
    """Raise UsageError where a tokenizer, read back, makes other tokens of `SAMPLES`."""
    for text in SAMPLES:
        if tokenizer(text)["input_ids"] != read(text)["input_ids"]:
            raise UsageError(
                f"the tokenizer of this model cannot be exported as gguf: {text!r} would be read back as other tokens; "
                "take --format transformers"
            )


def _as_compared(config: Any) -> dict[str, Any]:
    """What a configuration says of what a model computes."""
    found = {name: value for name, value in config.to_dict().items() if name not in _BESIDE.split()}
    found = {name: value for name, value in found.items() if not name.startswith(("_", "summary_"))}
    found["head_dim"] = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if config.model_type == "gpt2":
        found["n_inner"] = config.n_inner or 4 * config.n_embd
    for name in ("activation_function", "hidden_act", "hidden_activation"):
        if found.get(name) in ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"):
            found[name] = _TANH
    return found


def _same(one: Any, other: Any) -> bool:
    """Whether two values are the same: what is off or empty counts as not said, numbers as the file's float32."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return all(_same(one.get(name), other.get(name)) for name in one.keys() | other.keys())
    if isinstance(one, float) or isinstance(other, float):
        numbers = isinstance(one, int | float) and isinstance(other, int | float)
        return numbers and bool(np.float32(one) == np.float32(other))
    return bool(one == other or (not one and not other))


# -- writing it


def write_header(writer: gguf.GGUFWriter, config: Any, tokenizer: Any, name: str, ends: Sequence[int] = ()) -> None:
    """Write configuration, tokenizer and chat template.

    ends: the tokens that end a text for the model, beside the tokenizer's own. Raises UsageError for a tokenizer that
    GGUF files know no name for.
    """
    _write_config(writer, config, name)
    _write_tokenizer(writer, tokenizer, config.vocab_size)
    for number in sorted(set(ends) - {tokenizer.eos_token_id})[:1]:
        writer.add_eot_token_id(number)
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, Mapping):
        template = [{"name": key, "template": text} for key, text in template.items()]
    if template:
        writer.add_chat_template(template)


def _write_config(writer: gguf.GGUFWriter, config: Any, name: str) -> None:
    writer.add_name(name)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    architecture_of(config).about(writer, config)


def _write_tokenizer(writer: gguf.GGUFWriter, tokenizer: Any, rows: int) -> None:
    """rows: of the embedding; what the tokenizer does not use of them gets names of its own."""
    if not tokenizer.is_fast:
        raise UsageError(
            "this model's tokenizer has no tokenizer.json, from which gguf is written; save it as a fast one"
        )
    made = json.loads(tokenizer.backend_tokenizer.to_str())
    if made["model"]["type"] != "BPE":
        raise UsageError(
            f"found a tokenizer of type {made['model']['type']}, expected BPE, of which gguf is written; take --format "
            "transformers"
        )
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in made["model"]["merges"]]
    pieces = bool(made["model"].get("byte_fallback"))
    tokens, kinds = _entries(tokenizer, made, rows, pieces)
    if pieces:
        _write_pieces(writer, made, tokens, merges)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_split_of(made))
        writer.add_add_space_prefix(False)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in merges])
    for name, add in (
        ("bos", writer.add_bos_token_id),
        ("eos", writer.add_eos_token_id),
        ("unk", writer.add_unk_token_id),
        ("pad", writer.add_pad_token_id),
    ):
        if (number := getattr(tokenizer, f"{name}_token_id")) is not None:
            add(number)
    whole, bare = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False))
    writer.add_add_bos_token(bool(whole) and whole[0] == tokenizer.bos_token_id and len(whole) > len(bare))
    writer.add_add_eos_token(len(whole) > len(bare) and whole[-1] == tokenizer.eos_token_id and whole[-1] != bare[-1])


def _entries(tokenizer: Any, made: Mapping[str, Any], rows: int, pieces: bool) -> tuple[list[str], list[int]]:
    """Every token by number, and what kind each is."""
    tokens = [f"[PAD{number}]" for number in range(rows)]
    kinds = [_UNUSED] * rows
    for token, number in tokenizer.get_vocab().items():
        tokens[number], kinds[number] = token, _NORMAL
        if pieces and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            kinds[number] = _BYTE
    for added in made["added_tokens"]:
        kinds[added["id"]] = _CONTROL if added["special"] else _USER
    if pieces and tokenizer.unk_token_id is not None:
        kinds[tokenizer.unk_token_id] = _UNKNOWN
    return tokens, kinds


def _write_pieces(
    writer: gguf.GGUFWriter, made: Mapping[str, Any], tokens: Sequence[str], merges: Sequence[Sequence[str]]
) -> None:
    """A tokenizer as SentencePiece's: llama.cpp merges the pair whose whole has the highest score."""
    first: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        first.setdefault("".join(pair), rank)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_scores([-float(first.get(token, 0)) for token in tokens])
    blank = json.dumps([made.get("normalizer"), made.get("pre_tokenizer")])
    writer.add_add_space_prefix('"Prepend"' in blank or '"prepend_scheme": "first"' in blank)


def _split_of(made: Mapping[str, Any]) -> str:
    """llama.cpp's name of how a byte-level tokenizer cuts text before it merges. Raises UsageError for another way."""
    found = made["pre_tokenizer"] or {}
    steps = found.get("pretokenizers", [found])
    kinds = [step.get("type") for step in steps]
    blank = any(step.get("add_prefix_space") for step in steps)
    if not blank and kinds == ["ByteLevel"]:
        return "gpt-2"
    if not blank and kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"]:
        return "smollm"
    if not blank and kinds == ["Split", "ByteLevel"]:
        for name in ("llama-bpe", "qwen2", "tekken", "gpt-4o", "qwen35"):
            if steps[0]["pattern"] == {"Regex": _splits().get(name)}:
                return name
    raise UsageError(
        "this model's tokenizer cuts text in a way that gguf has no name for here; take --format transformers"
    )


def _splits() -> Mapping[str, str]:
    """The patterns of ways to cut text, as transformers knows them by llama.cpp's names."""
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    except ImportError:  # before transformers 5, which cuts all texts as GPT-2 does
        return {}
    found: Mapping[str, str] = GGUF_PRE_TOKENIZER_SPLITS
    return found
