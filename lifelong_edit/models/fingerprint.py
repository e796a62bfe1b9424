"""The fingerprint of a model's weights: what tells one base model, revision or dtype from another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def fingerprint_of(model: Any, replaced: Mapping[str, Tensor] | None = None) -> str:
    """Digest (32 hex digits, BLAKE2b) of model type, names, shapes, dtypes and bytes of all parameters.

    Parameters are taken as loaded, in the order of their names; one that is tied to another counts
    once. So it does not depend on how files are cut or whether they repeat tied weights.
    replaced: parameters to take instead of the model's own.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{model.config.model_type}\n".encode())
    for name, own in sorted(model.named_parameters(), key=lambda entry: str(entry[0])):
        parameter = (replaced or {}).get(name, own)
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\n".encode())
        raw = parameter.detach().cpu().contiguous().view(-1).view(torch.uint8)
        digest.update(raw.numpy())
    return digest.hexdigest()
