"""A model of the same layers as another one, but fewer of them and without its weights, to measure with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lifelong_edit.models.loading import auto_of, outline_of
from lifelong_edit.models.places import locate
from lifelong_edit.models.quiet import quiet_transformers

LAYERS = 2
"""How many layers are built of a model that is too large to be loaded."""


@dataclass(frozen=True)
class Size:
    """Of a model by its configuration: parameters, layers, d_in and d_out of the matrices that would be edited."""

    parameters: int
    layers: int
    matrices: tuple[tuple[int, int], ...]


def size_of(source: str, modules: tuple[str, ...], revision: str | None, places: Any) -> Size | None:
    """The size of a model whose weights need not be there; None where its configuration does not tell."""
    from transformers import AutoConfig

    home = locate(source, revision)
    outline = outline_of(home, list(modules), revision, places)
    if outline is None:
        return None
    with quiet_transformers(), torch.device("meta"):
        config = AutoConfig.from_pretrained(home.path, revision=revision, **home.options)
        bare = auto_of(outline.family.kind, config).from_config(config)
    layers = int(getattr(config.get_text_config(), "num_hidden_layers", 0))
    shapes = tuple((m.d_in, m.d_out) for m in outline.modules)
    return Size(sum(p.numel() for p in bare.parameters()), layers, shapes)


def build_small(source: str, folder: Path, revision: str | None, dtype: torch.dtype) -> Path:
    """A folder with a model of LAYERS layers of the same shape, random weights, and the tokenizer."""
    from transformers import AutoConfig, AutoTokenizer

    home = locate(source, revision)
    with quiet_transformers():
        config = AutoConfig.from_pretrained(home.path, revision=revision, **home.options)
        text = config.get_text_config()
        text.num_hidden_layers = LAYERS
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:LAYERS]
        outline = outline_of(home, (), revision)
        kind = "causal" if outline is None else outline.family.kind
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = auto_of(kind, config).from_config(config, dtype=dtype)
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(home.path, revision=revision, **home.options).save_pretrained(folder)
    return folder
