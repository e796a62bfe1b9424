"""The conflict keys of facts: what a prompt looks like to the base model, so that two that ask the same are found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lifelong_edit.facts import Fact
from lifelong_edit.models import encode_prompt
from lifelong_edit.tracing.preservation import centred, lowest_keys

if TYPE_CHECKING:
    from lifelong_edit.editors.ridge.batch import Bench


def conflict_of(bench: Bench, facts: Sequence[Fact]) -> dict[str, np.ndarray]:
    """The conflict key of each fact's prompt as it is stored, digest → (d_in,) float32: neither centred nor scaled."""
    keys = _raw_conflict_keys(bench, [fact.prompt for fact in facts]).cpu().numpy()
    return {fact.digest: key.copy() for fact, key in zip(facts, keys, strict=True)}


def centred_keys(bench: Bench, conflict: Mapping[str, np.ndarray], facts: Sequence[Fact]) -> Tensor:
    """What `conflict_keys` gives for the prompts of facts, from the keys of `conflict_of`, (n, d_in)."""
    keys = torch.from_numpy(np.stack([conflict[fact.digest] for fact in facts]))
    return centred(keys.to(bench.loaded.device), bench.conflict_mean)


def conflict_keys(bench: Bench, prompts: Sequence[str]) -> np.ndarray:
    """Centred normalised conflict keys, those of `lowest_keys` at each prompt's last token, (n, d_in) float32."""
    return centred(_raw_conflict_keys(bench, prompts), bench.conflict_mean).cpu().numpy()


def _raw_conflict_keys(bench: Bench, prompts: Sequence[str]) -> Tensor:
    ids = [encode_prompt(bench.loaded.tokenizer, p) for p in prompts]
    return lowest_keys(bench.loaded, ids, bench.settings.micro_batch)
