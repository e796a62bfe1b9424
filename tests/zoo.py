"""Models and stores that many tests begin with: made once in a run of the tests, whichever process asks first.

They lie in the folder of the run, which its processes share, under a digest of what makes them; so nothing is kept from
one run to the next, and nothing can be out of date. The originals are only read: what writes gets a copy.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from lifelong_edit.stores import digest_bytes

LLAMA: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
_LINEAR = {
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_ROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}}
_SIGHT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_QWEN_SIGHT = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
_SMALL_SIGHT = {**_SIGHT, "image_size": 28, "patch_size": 14}


def _seeing(text: dict[str, Any], sight: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"text_config": {**LLAMA, **text}, "vision_config": sight, **more}


DECODERS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("cohere", "cohere2", "granite", "ministral3", "olmo", "phi", "starcoder2", "stablelm"), LLAMA),
    **dict.fromkeys(("glm", "glm4", "olmo2", "olmo3", "phi3", "smollm3"), LLAMA),
    "falcon": {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 64},
    "bloom": {"hidden_size": 32, "n_layer": 4, "n_head": 4, "seq_length": 64},
    "mpt": {"d_model": 32, "n_layers": 4, "n_heads": 4, "expansion_ratio": 2, "max_seq_len": 64},
    "gpt_bigcode": {"n_embd": 32, "n_inner": 48, "n_layer": 4, "n_head": 4, "n_positions": 64},
    "qwen3_5_text": {**LLAMA, **_LINEAR},
    "gemma3": _seeing({"sliding_window": 8}, _SIGHT, mm_tokens_per_image=1),
    "qwen2_vl": _seeing(_ROPE, {"depth": 1, "embed_dim": 16, "num_heads": 2}),
    "qwen2_5_vl": _seeing(_ROPE, _QWEN_SIGHT),
    "qwen3_vl": _seeing(_ROPE, {**_QWEN_SIGHT, "deepstack_visual_indexes": []}),
    "qwen3_5": _seeing(_LINEAR, _QWEN_SIGHT),
    "llava": _seeing({"model_type": "llama"}, {"model_type": "siglip_vision_model", **_SIGHT}),
    "mistral3": _seeing({"model_type": "mistral"}, {"model_type": "pixtral", **_SIGHT}),
    **{name: _seeing({"model_type": "llama"}, _SMALL_SIGHT) for name in ("idefics3", "smolvlm")},
}
"""Decoders by model type, each with 4 layers and a width of 32; some see as well."""
_EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
EXPERTS = {name: {**LLAMA, **_EXPERTS} for name in ("gpt_oss", "mixtral", "qwen2_moe", "qwen3_moe")}
"""Mixtures of experts by model type."""

_T5 = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 4,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "n_positions": 64,
}
_GATED = {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
_BART = {
    "d_model": 32,
    **{f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (("ffn_dim", 48), ("attention_heads", 4))},
    "encoder_layers": 4,
    "decoder_layers": 3,
    "max_position_embeddings": 64,
}
ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    "t5": _T5,
    **dict.fromkeys(("mt5", "umt5"), _GATED),
    **dict.fromkeys(("bart", "mbart", "pegasus"), _BART),
}
"""Encoder-decoders by model type, with 4 layers that read, 3 that write, and a width of 32; all take 64 tokens."""


_BERT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_FROM_PAD = {**_BERT, "max_position_embeddings": 65, "type_vocab_size": 1}
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": _BERT,
    "electra": {**_BERT, "embedding_size": 16},
    **dict.fromkeys(("roberta", "xlm-roberta", "camembert"), _FROM_PAD),
    "distilbert": {"dim": 32, "hidden_dim": 48, "n_layers": 4, "n_heads": 4, "max_position_embeddings": 64},
    "deberta-v2": {
        **_BERT,
        "type_vocab_size": 0,
        "relative_attention": True,
        "position_buckets": 16,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
    },
    "modernbert": {**_BERT, "local_attention": 16, "global_attn_every_n_layers": 2},
}
"""Encoders by model type, each with 4 layers and a width of 32, that read 64 tokens."""


class Zoo:
    """What was made so far, in a folder that processes share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def keep(self, name: str, made_of: object, make: Callable[[Path], object]) -> Path:
        """The folder that `make` fills, made now if nobody has made it; only to be read.

        made_of: all that the folder's content depends on, as msgspec encodes it. make: gets a path where nothing is
        yet; where it raises, nothing is kept.
        """
        digest = digest_bytes(name.encode(), msgspec.json.encode(made_of, order="deterministic"))
        home = self._folder / f"{name}-{digest[:16]}"
        with _locked(home.with_suffix(".lock")):
            if not home.exists():
                begun = home.with_suffix(".begun")
                shutil.rmtree(begun, ignore_errors=True)
                make(begun)
                begun.rename(home)
        return home

    def copy(self, name: str, made_of: object, make: Callable[[Path], object], to: Path) -> Path:
        """A copy of the same at another path, to write to."""
        return Path(shutil.copytree(self.keep(name, made_of, make), to))

    def model(
        self,
        kind: str,
        options: dict[str, Any],
        tokenizer: Any,
        *,
        seed: int,
        spread: float = 0.2,
        task: str = "causal",
    ) -> Path:
        """A folder with a model of random weights, and the tokenizer. task: its kind, as `models.families.Kind` has it.

        Matrices are normal with deviation `spread`: the start of transformers (0.02) gives nearly uniform answers, a
        wider one gives each prompt its own. Vectors stay as they begin.
        """

        def make(folder: Path) -> None:
            import torch
            from transformers import AutoConfig

            from lifelong_edit.models.families import Kind
            from lifelong_edit.models.loading import auto_of

            config = AutoConfig.for_model(kind, **options)
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                model = auto_of(cast("Kind", task), config).from_config(config)
                for parameter in model.parameters():
                    if parameter.dim() > 1:
                        parameter.data.normal_(0, spread)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)

        return self.keep(kind, [options, tokenizer.get_vocab(), seed, spread, task], make)


def with_vocabulary(options: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """Options of a model that reads the tokenizer's tokens; one that sees gets numbers of tokens for images too."""
    words = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    if "text_config" not in options:
        return {**options, **words}
    images = {"image_token_id": 3, "video_token_id": 4, "vision_start_token_id": 5, "vision_end_token_id": 6}
    return {**options, **images, "text_config": {**options["text_config"], **words}}


def for_pairs(options: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """Options of an encoder-decoder that reads and writes the tokenizer's tokens; it begins with padding, as T5."""
    words = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "bos_token_id": 0}
    return {
        **options,
        **words,
        "eos_token_id": tokenizer.eos_token_id,
        "decoder_start_token_id": 0,
        "forced_eos_token_id": None,
    }


def for_encoder(options: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """Options of an encoder that reads the tokenizer's tokens."""
    marks = {"pad": tokenizer.pad_token_id, "cls": tokenizer.cls_token_id, "sep": tokenizer.sep_token_id}
    marks |= {"bos": tokenizer.cls_token_id, "eos": tokenizer.sep_token_id}
    return {**options, "vocab_size": len(tokenizer), **{f"{name}_token_id": number for name, number in marks.items()}}


def folder_of_run(config: pytest.Config, base: Path) -> Path:
    """The folder that all processes of a run of the tests share. base: this process's own, of pytest."""
    return (base.parent if hasattr(config, "workerinput") else base) / "zoo"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
