"""The format `peft`: ΔW as a LoRA adapter, as near as a rank allows, with what is lost by it told."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lifelong_edit.errors import UsageError
from lifelong_edit.export.asking import differing
from lifelong_edit.models import LoadedModel, Question
from lifelong_edit.models.families import Kind
from lifelong_edit.models.placement import state_of
from lifelong_edit.models.places import locate

ERROR = 0.01
"""The relative error that an adapter may have where neither a rank nor an error is asked for."""
TASK_TYPES: dict[Kind, str | None] = {
    "causal": "CAUSAL_LM",
    "classify": "SEQ_CLS",
    "masked": None,  # PEFT knows none for it: an adapter without one is put on whatever model it is given
    "seq2seq": "SEQ_2_SEQ_LM",
}
"""What PEFT calls the kinds of models."""
_HEADS = ("classifier", "score")
"""How the names of a classifier's modules end that PEFT takes from the adapter, whatever is edited."""


@dataclass(frozen=True)
class Factors:
    """ΔW of a module by its singular values, the largest first: (d_in, k) left, (k,) values, (k, d_out) right."""

    left: Tensor
    values: Tensor
    right: Tensor

    @classmethod
    def of(cls, shift: Tensor) -> Factors:
        """Of ΔW, (d_in, d_out), in float64: the small values are read from the same sum as the large ones."""
        return cls(*torch.linalg.svd(shift.detach().cpu().double(), full_matrices=False))

    def error(self, rank: int) -> float:
        """‖ΔW − ΔW_r‖ / ‖ΔW‖ in the Frobenius norm (Eckart and Young, 1936); 0 where ΔW is nothing."""
        whole = float(self.values.square().sum())
        return (float(self.values[rank:].square().sum()) / whole) ** 0.5 if whole else 0.0

    def rank(self, error: float) -> int:
        """The smallest rank whose error is at most so large."""
        return next((rank for rank in range(len(self.values)) if self.error(rank) <= error), len(self.values))

    def lora(self, rank: int) -> tuple[Tensor, Tensor]:
        """A (r, d_in) and B (d_out, r) float32 with (B A)ᵀ = ΔW_r.

        PEFT's Linear adds x Aᵀ Bᵀ to what a module gives, whichever way that stores its own weights. Where the matrix
        has fewer values than the rank, zeros fill up.
        """
        root, count = self.values[:rank].sqrt(), min(rank, len(self.values))
        down = torch.zeros(rank, self.left.shape[0], dtype=torch.float64)
        up = torch.zeros(self.right.shape[1], rank, dtype=torch.float64)
        down[:count] = root[:, None] * self.left[:, :rank].T
        up[:, :count] = self.right[:rank].T * root
        return down.float().contiguous(), up.float().contiguous()


def write_peft(
    loaded: LoadedModel,
    shifts: Mapping[str, Tensor],
    folder: Path,
    rank: int | None = None,
    error: float | None = None,
    questions: Sequence[Question] = (),
) -> dict[str, Any]:
    """Write a LoRA adapter of one rank for all modules, which PEFT and the servers that take LoRA load.

    rank: of it; else the smallest with a relative error of at most `error` in every module (`ERROR` by default).
    questions: asked of the state and of the adapter, to tell which answers differ. LoRA: Hu et al., arXiv 2106.09685.
    Raises UsageError where rank and error are both given, or out of range, OSError or SafetensorError.
    """
    _require_one(rank, error)
    factors = {name: Factors.of(shift) for name, shift in shifts.items() if bool(shift.any())}
    needed = {name: found.rank(ERROR if error is None else error) for name, found in factors.items()}
    width = rank if rank is not None else max([1, *needed.values()])
    lora = {name: found.lora(width) for name, found in factors.items()}
    if not lora:  # the base: an adapter has to be of something
        module = loaded.modules[0]
        lora = {module.name: (torch.zeros(width, module.d_in), torch.zeros(module.d_out, width))}
    tensors = {f"base_model.model.{name}.lora_A.weight": down for name, (down, _) in lora.items()}
    tensors |= {f"base_model.model.{name}.lora_B.weight": up for name, (_, up) in lora.items()}
    heads = _heads(loaded)
    tensors |= heads
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    kind = None if loaded.labels and not heads else TASK_TYPES[loaded.family.kind]
    config = json.dumps(_config(loaded, list(lora), width, kind), indent=2, sort_keys=True)
    (folder / "adapter_config.json").write_text(config + "\n", encoding="utf-8")
    errors = {name: found.error(width) for name, found in factors.items()}
    told = {"rank": width, "error": max(errors.values(), default=0.0), "errors": errors, "ranks_needed": needed}
    near = {name: (down.T @ up.T).contiguous() for name, (down, up) in lora.items()}
    return {"lora": {**told, **differing(loaded, shifts, loaded, near, questions, "adapter")}}


def _require_one(rank: int | None, error: float | None) -> None:
    if rank is not None and error is not None:
        raise UsageError("found a rank and an error for an adapter, expected one of them; the other follows")
    if (rank is not None and rank < 1) or (error is not None and not 0 <= error < 1):
        raise UsageError(
            f"found rank {rank} and error {error} for an adapter, expected a rank from 1 or an error from 0 to 1"
        )


def _heads(loaded: LoadedModel) -> dict[str, Tensor]:
    """The parameters of a classifier's head as PEFT reads them, those of the base.

    None of another model; none where something of it is edited either, which PEFT refuses to do twice.
    """
    names = [name for name, _ in loaded.model.named_modules() if name.endswith(_HEADS)] if loaded.labels else []
    if any(module.name.startswith(name) for module in loaded.modules for name in names):
        return {}
    own = state_of(loaded.model)
    inside = [key for key in own if any(key.startswith(f"{name}.") for name in names)]
    return {f"base_model.model.{key}": own[key].detach().cpu().clone().contiguous() for key in inside}


def _config(loaded: LoadedModel, names: Sequence[str], rank: int, task_type: str | None) -> dict[str, Any]:
    """What PEFT's LoraConfig reads; alpha is the rank, so that B A is added as it is."""
    transposed = {loaded.module(name).orientation == "conv1d" for name in names}
    return {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": locate(loaded.source).path,
        "target_modules": sorted(names),
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        # Of the base's own matrices, for merging; PEFT puts it right module by module where both kinds are edited.
        "fan_in_fan_out": transposed == {True},
        "inference_mode": True,
    }
