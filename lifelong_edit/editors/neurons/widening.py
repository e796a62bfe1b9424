"""The same model without hooks: its MLPs made wider, with the new neurons written into their matrices.

A neuron that opens along a ramp is two of the model's own, one switched on where the ramp begins, one off where it
ends: act(βz)/β − act(β(z − 1))/β is a ramp from 0 to 1 for every activation that is like a ReLU from afar.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lifelong_edit.editors.neurons.grown import Grown
from lifelong_edit.editors.neurons.reading import FUSED, UP, reader_of
from lifelong_edit.errors import UsageError
from lifelong_edit.models import LoadedModel

SHARPNESS = 64.0
"""β: the ramp's corners are round within a 64th of its width."""
BLOCK = 256
"""Widths grow by whole blocks, as quantised formats want them."""
_WIDTHS = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "hidden_dim")


def widened(loaded: LoadedModel, grown: Sequence[tuple[str, Grown]]) -> LoadedModel:
    """A model of its own that is the base with its neurons.

    Every layer becomes as wide as the widest, since configurations know one width; what is not needed is zero. Raises
    UsageError for a model whose configuration has no width to change, or whose activation is no ramp from afar.
    """
    model = loaded.model
    most = max(2 * len(neurons.gate) for _, neurons in grown)
    wide = -(-most // BLOCK) * BLOCK
    narrow = loaded.module(grown[0][0]).d_in
    fresh = type(model)(_wider(model.config, narrow, wide)).to(dtype=loaded.dtype, device=loaded.device)
    state = model.state_dict()
    with torch.no_grad():
        for name, parameter in fresh.state_dict().items():
            _copy(parameter, state[name], fused=name.rpartition(".weight")[0].endswith(FUSED))
        for name, neurons in grown:
            _write(fresh, name, neurons, narrow)
    fresh.tie_weights()
    if hasattr(model, "generation_config"):
        fresh.generation_config = copy.deepcopy(model.generation_config)
    fresh.train(model.training)
    return replace(loaded, model=fresh, modules=(), fingerprint="")


def _wider(config: Any, narrow: int, more: int) -> Any:
    config = copy.deepcopy(config)
    text = config.get_text_config()
    for name in _WIDTHS:
        found = getattr(text, name, -1)
        if found == narrow or (name == "n_inner" and found is None):
            setattr(text, name, narrow + more)
            return config
    raise UsageError(
        f"found no width of {narrow} in the configuration of this {config.model_type} model, expected one of "
        f"{', '.join(_WIDTHS)}; its MLPs cannot be made wider, so it cannot leave as a model of its own"
    )


def _copy(to: Tensor, old: Tensor, *, fused: bool) -> None:
    """What was there, and zeros. fused: two matrices one above the other, each of which grows."""
    if to.shape == old.shape:
        to.copy_(old)
        return
    to.zero_()
    parts = zip(to.chunk(2), old.chunk(2), strict=True) if fused else [(to, old)]
    for wide, part in parts:
        wide[tuple(slice(0, size) for size in part.shape)].copy_(part)


def _write(model: Any, output: str, neurons: Grown, start: int) -> None:
    """Neurons in the rows from `start` on of what reads, and columns of what is given out."""
    reads = reader_of(model, output)
    _require_ramp(model.get_submodule(reads.rpartition(".")[0]))
    home, reader = model.get_submodule(output.rpartition(".")[0]), model.get_submodule(reads)
    count, slope = len(neurons.gate), SHARPNESS / neurons.width
    where = slice(start, start + 2 * count)
    # Where a ramp begins, and where it ends.
    levels = slope * torch.tensor([neurons.opens, neurons.opens + neurons.width]).repeat_interleave(count)
    rows = slope * neurons.gate.cpu().repeat(2, 1)
    if neurons.level is None:
        reader.bias[where] = -levels.to(reader.bias)
    else:
        rows -= levels[:, None] * neurons.level.cpu()
    beside_it = neurons.level if neurons.gated else None
    if beside_it is not None and (up := getattr(home, UP, None)) is not None:
        _matrix(up)[:, where] = beside_it[:, None].to(up.weight)
    elif beside_it is not None:  # both in one matrix, one above the other
        beside = len(reader.weight) // 2 + start
        reader.weight[beside : beside + 2 * count] = beside_it.to(reader.weight)
    _matrix(reader)[:, where] = rows.T.to(reader.weight)
    out = model.get_submodule(output)
    _matrix(out)[where] = (torch.cat([neurons.value, -neurons.value]) / SHARPNESS).to(out.weight)


def _matrix(module: Any) -> Tensor:
    """The weights of a linear map as (d_in, d_out), a view however they are stored."""
    weight: Tensor = module.weight
    return weight if type(module) is Conv1D else weight.T


def _require_ramp(home: nn.Module) -> None:
    for name in ("act_fn", "act", "activation_fn", "activation", "gelu_impl", "intermediate_act_fn"):
        act = getattr(home, name, None)
        if callable(act):
            found = act(torch.tensor([SHARPNESS, -SHARPNESS]))
            if bool(torch.allclose(found / SHARPNESS, torch.tensor([1.0, 0.0]), atol=1e-3)):
                return
    raise UsageError(
        f"found no activation like a ReLU from afar in {type(home).__name__}, expected one (SiLU, GELU, ReLU), of "
        "which a neuron's gate can be made; this state cannot leave as a model of its own"
    )
