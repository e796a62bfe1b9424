"""The fingerprint of a model's weights: what tells one base model, revision or dtype from another."""

from __future__ import annotations

import hashlib
from typing import Any

import torch


def fingerprint_of(model: Any) -> str:
    """Digest (32 hex digits, BLAKE2b) of model type, names, shapes, dtypes and bytes of all parameters.

    Parameters are taken as loaded, in the order of their names; one that is tied to another counts
    once. So it does not depend on how files are cut or whether they repeat tied weights.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{model.config.model_type}\n".encode())
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\n".encode())
        raw = parameter.detach().cpu().contiguous().view(-1).view(torch.uint8)
        digest.update(raw.numpy())
    return digest.hexdigest()
