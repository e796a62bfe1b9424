"""Whether all of a checkpoint is in the model that was made of it: what is not is refused, or named.

transformers leaves out in silence, or with a line in its log, whatever a model has no place for. An edit of such a
model would be an edit of another one, and its export would lack what was left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers.utils import cached_file, find_adapter_config_file

from lifelong_edit.errors import LifelongEditError
from lifelong_edit.models.places import Place

INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"
INSTEAD = "load the checkpoint in full precision, or a GGUF file, which is dequantised"
# Buffers that earlier releases of transformers wrote, which follow from the configuration; in T5's first checkpoints a
# table that no T5 has ever read.
_HARMLESS = re.compile(
    r"(^|\.)((attn|attention)\.(masked_)?bias|(rotary\w*\.)?inv_freq|position_ids"
    r"|EncDecAttention\.relative_attention_bias\.weight)$"
)
_SCALES = re.compile(r"weight_scale|scale_inv$|\.(qweight|qzeros|scales|g_idx|absmax|quant_map)($|\.)")
# Beside a language model: what sees and hears, and what guesses tokens ahead to save time; beside a masked one what
# told whether two sentences follow each other when it was trained.
_BESIDE = re.compile(
    r"(^|\.)(visual|vision_\w+|multi_modal_projector|audio_\w+|embed_(vision|audio)|mtp|pooler|cls\.seq_relationship)\."
)


def require_full_precision(config: Any, source: str) -> None:
    """Raise LifelongEditError where a model's configuration says that its weights are quantised."""
    for part in (config, config.get_text_config()):
        found = getattr(part, "quantization_config", None)
        if found:
            told = found if isinstance(found, dict) else vars(found)
            method = told.get("quant_method", "an unknown method")
            raise LifelongEditError(
                f"the weights of {source!r} are quantised by {getattr(method, 'value', method)}, and quantised weights "
                f"cannot be edited; {INSTEAD}"
            )


def require_no_adapter(home: Place, source: str, revision: str | None) -> None:
    """Raise LifelongEditError where an adapter lies beside a model on the hub; transformers would leave it out."""
    if home.gguf is None and find_adapter_config_file(home.path, revision=revision) is not None:
        raise LifelongEditError(
            f"model {source!r} has an adapter beside its weights, which would be left out; merge the adapter into the "
            "model and load that"
        )


def require_complete(model: Any, unexpected: Collection[str], names: Iterable[str], source: str) -> tuple[str, ...]:
    """What of a checkpoint is beside the language model and not in it, by the first part of its names, sorted.

    unexpected: names for which transformers found no place. names: all names in the checkpoint, of which transformers
    does not even tell those that a class says to ignore.
    Raises LifelongEditError for anything else that was left out.
    """
    ignored = [re.compile(pattern) for pattern in getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()]
    owned = {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_buffers()}
    untold = {name for name in names if name not in owned and any(pattern.search(name) for pattern in ignored)}
    left_out = sorted(name for name in untold | set(unexpected) if not _HARMLESS.search(name))
    lost = [name for name in left_out if _SCALES.search(name) or not _BESIDE.search(name)]
    if not lost:
        return tuple(sorted({name[: match.end() - 1] for name in left_out if (match := _BESIDE.search(name))}))
    if _SCALES.search(lost[0]):
        raise LifelongEditError(f"{source!r} holds {lost[0]}, which belongs to quantised weights; {INSTEAD}")
    raise LifelongEditError(
        f"{source!r} holds {len(lost)} tensors for which its configuration has no place, first {lost[0]}; correct "
        "config.json (as num_hidden_layers), or take out what does not belong to the model"
    )


def names_in(home: Place, revision: str | None) -> tuple[str, ...]:
    """The names of all tensors in a model's safetensors, as far as they can be found without loading anything."""
    index, weights = (_file(home, name, revision) for name in (INDEX, WEIGHTS))
    if weights is not None:
        with safe_open(weights, framework="pt") as tensors:
            return tuple(tensors.keys())
    return () if index is None else tuple(json.loads(index.read_bytes())["weight_map"])


def _file(home: Place, name: str, revision: str | None) -> Path | None:
    options: dict[str, Any] = {"revision": revision, "_raise_exceptions_for_missing_entries": False}
    found = None if home.gguf is not None else cached_file(home.path, name, local_files_only=True, **options)
    return None if found is None else Path(found)


def require_rows(tokenizer: Any, rows: int, source: str) -> None:
    """Raise LifelongEditError where a tokenizer makes tokens for which the model's embedding has no row.

    Special tokens may be beyond it, as that of images in Gemma 3: they come from no ordinary text, and `encode` refuses
    a text that has them, by the number of rows that the tokenizer is given here as `embedding_rows`.
    """
    tokenizer.embedding_rows = rows
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    beyond = sorted((id, text) for text, id in tokenizer.get_vocab().items() if id >= rows and id not in special)
    if beyond:
        raise LifelongEditError(
            f"the tokenizer of {source!r} has token {beyond[0][1]!r} with number {beyond[0][0]}, but the model's "
            f"embedding has rows 0 to {rows - 1}; take the tokenizer that belongs to the model"
        )
