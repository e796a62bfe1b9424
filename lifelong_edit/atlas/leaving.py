"""What a build leaves in its folder: tokenizer, weights in float16, and a card with what was judged of both."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from transformers import PreTrainedTokenizerFast

from lifelong_edit.atlas.tokenizing import save_tokenizer
from lifelong_edit.atlas.world_tables import world_facts


def leave(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    out: Path,
    recipe: Any,
    judged: Callable[[Any], Mapping[str, object]],
    how: Callable[[], Mapping[str, object]] = dict,
) -> dict[str, object]:
    """Save a model, judge it as it was saved, and return the card.

    recipe: the dataclass that the model is a function of. judged: figures of the model that is read back. how: what
    else is to be told of the training, asked at the end.
    """
    out.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, out)
    model.half().save_pretrained(out)
    card: dict[str, object] = {
        "facts": len(world_facts()),
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes": (out / "model.safetensors").stat().st_size,
        "recipe": dataclasses.asdict(recipe),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
        **judged(type(model).from_pretrained(out, dtype=torch.float32).eval()),
        **how(),
    }
    (out / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    return card


def trained(half: bool, seconds: float) -> dict[str, object]:
    """How a model was trained: in which precision, by how many threads, for how long."""
    return {
        "precision": "bfloat16 products, float32 sums" if half else "float32",
        "threads": torch.get_num_threads(),
        "seconds": round(seconds),
    }
