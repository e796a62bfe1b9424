"""The fingerprints of a model: what tells one base model, revision or dtype from another, and one tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lifelong_edit.models.placement import names_of, whole


def fingerprint_of(model: Any, replaced: Mapping[str, Tensor] | None = None) -> str:
    """Digest (32 hex digits, BLAKE2b) of model type, names, shapes, dtypes and bytes of all parameters.

    Parameters are taken as loaded, in the order of their names; one that is tied to another counts
    once. So it does not depend on how files are cut or whether they repeat tied weights.
    Of a classifier the names of its labels count as well: they are its answers.
    replaced: parameters to take instead of the model's own.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{model.config.model_type}\n".encode())
    if type(model).__name__.endswith("ForSequenceClassification"):
        labels = sorted((int(number), str(name)) for number, name in model.config.id2label.items())
        digest.update(f"{labels}\n".encode())
    for name in sorted(names_of(model)):
        given = (replaced or {}).get(name)
        parameter = whole(model, name) if given is None else given
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\n".encode())
        raw: Any = parameter.detach().cpu().contiguous().view(-1).view(torch.uint8)
        digest.update(raw.numpy())
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Digest (32 hex digits, BLAKE2b) of all by which a tokenizer makes tokens of text, and of its chat template.

    Vocabulary, merges, added tokens, and each step before and behind them. Left out are padding and truncation, which
    each call sets anew, and what is off or empty, so that a switch which a later release adds changes nothing.
    Of a slow tokenizer it is the vocabulary and the special tokens.
    """
    if tokenizer.is_fast:
        made: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
        made = {name: part for name, part in made.items() if name not in ("padding", "truncation")}
        merges = made.get("model", {}).get("merges")
        if merges:  # pairs in newer releases, texts in older ones
            made["model"]["merges"] = [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]
    else:
        made = {"vocabulary": tokenizer.get_vocab(), "special": tokenizer.special_tokens_map}
    told = {"tokenizer": made, "chat_template": getattr(tokenizer, "chat_template", None)}
    text = json.dumps(_without_empty(told), sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _without_empty(value: Any) -> Any:
    """The same without what is off or empty, at any depth; numbers stay, 0 too."""
    if isinstance(value, dict):
        cleaned = {name: _without_empty(part) for name, part in value.items()}
        return {name: part for name, part in cleaned.items() if part not in (None, "", [], {}) and part is not False}
    return [_without_empty(part) for part in value] if isinstance(value, list) else value
