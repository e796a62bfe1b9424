"""Puts the change in this folder on the model that it is of: python apply.py BASE OUT"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file


def fingerprint(model: Any) -> str:
    """The digest of a model's type and parameters, by which the change knows its base."""
    digest = hashlib.blake2b(f"{model.config.model_type}\n".encode(), digest_size=16)
    for name, weight in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
        digest.update(weight.detach().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def main(base: str, out: str, here: Path) -> None:
    """Load the base, add the change, save the whole."""
    told = json.loads((here / "lifelong_edit.json").read_text(encoding="utf-8"))
    kind = getattr(transformers, told["model_class"], transformers.AutoModelForCausalLM)
    model = kind.from_pretrained(base, dtype=told["dtype"])
    if fingerprint(model) != told["base"]["fingerprint"]:
        sys.exit(f"{base} is not the model that this change is of, {told['base']['source']}")
    for name, change in load_file(here / "delta.safetensors").items():
        weight = model.get_parameter(name).data
        weight.copy_((weight.float() + change).to(weight.dtype))
    model.save_pretrained(out)
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(out)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(__file__).parent)
