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
    """The digest of a model's type and parameters, of a classifier also its labels, by which the base is known."""
    digest = hashlib.blake2b(f"{model.config.model_type}\n".encode(), digest_size=16)
    if type(model).__name__.endswith("ForSequenceClassification"):
        labels = sorted((int(number), str(name)) for number, name in model.config.id2label.items())
        digest.update(f"{labels}\n".encode())
    for name, weight in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
        digest.update(weight.detach().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def main(base: str, out: str, here: Path) -> None:
    """Load the base, add the change, save the whole."""
    told = json.loads((here / "lifelong_edit.json").read_text(encoding="utf-8"))
    # A class that comes with its model's own code is none of transformers.
    kind = getattr(transformers, told["model_class"], None) or getattr(transformers, told["loader"])
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
