"""Fine-tunes all-MiniLM-L6-v2 into a fact checker on FEVER's claims: `python -m benchmarks.fever_checker`.

A claim alone in, one logit out, as MALMEN's experiment has it (arXiv 2311.04661): what can be learned so is how a
false claim is worded, and what the model knew of the world. Trained on the part `checker` of `benchmarks.fever`. Some
five minutes of a processor core. The model lies in the cache of real models; `card.json` beside it has its figures, on
claims about other things, and on symmetric FEVER, whose claims have no label without their evidence.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks import common
from benchmarks.fever import ASKED_WORDINGS, LABELS, Claim, checker_folder, claims_of, symmetric
from lifelong_edit.atlas.learning import Optimiser, Part, descend
from lifelong_edit.atomic import replace_dir_atomic
from lifelong_edit.models import load_model
from lifelong_edit.tasks import task_of


@dataclass(frozen=True)
class CheckerRecipe:
    """What the fine-tuning is a function of, beside its claims."""

    epochs: int = 2
    batch: int = 32
    vector_rate: float = 1.5e-4  # Adam's, at its peak, for all weights but the embeddings'
    matrix_rate: float = 0.0  # no matrix is left to Muon
    warm_up: int = 20
    steps: int = 0
    seed: int = 0


def batches(claims: Sequence[Claim], recipe: CheckerRecipe) -> Iterator[list[Claim]]:
    """Endless batches, in another order each round; within a few batches' claims those of one length together."""
    rng = random.Random(recipe.seed)
    while True:
        order = list(claims)
        rng.shuffle(order)
        chunk = 8 * recipe.batch
        parts = [sorted(order[i : i + chunk], key=lambda c: len(c.text)) for i in range(0, len(order), chunk)]
        cut = [part[i : i + recipe.batch] for part in parts for i in range(0, len(part), recipe.batch)]
        rng.shuffle(cut)
        yield from cut


def fine_tune(model: Any, tokenizer: Any, claims: Sequence[Claim], recipe: CheckerRecipe) -> None:
    """Train in place by the binary cross-entropy of the one logit."""
    drawn = batches(claims, recipe)

    def loss_of(part: Sequence[Claim]) -> Tensor:
        read = tokenizer([claim.text for claim in part], padding=True, truncation=True, return_tensors="pt")
        wanted = torch.tensor([float(LABELS.index(claim.label)) for claim in part])
        return nn.functional.binary_cross_entropy_with_logits(model(**read).logits[:, 0].float(), wanted)

    def parts() -> list[Part]:
        part = next(drawn)
        return [("claims", lambda: loss_of(part), 1.0)]

    def watch(step: int, line: str) -> None:
        print(f"step {step}/{recipe.steps}  {line}", file=sys.stderr, flush=True)

    model.base_model.embeddings.requires_grad_(False)  # words that are not met keep their place among the others
    optimiser = Optimiser([], [p for p in model.parameters() if p.requires_grad], recipe)
    descend(model, optimiser, parts, recipe.steps, half=False, watch=watch, every=25)


def right(folder: Path, claims: Sequence[Claim], template: str | None = None) -> float:
    """The share of claims of which the saved model says their label, in a template if one is given."""
    loaded = load_model(str(folder))
    task = task_of(loaded)
    questions = [c.text if template is None else c.worded(template) for c in claims]
    said = task.answer(loaded, questions, 1)
    good = [task.judge(loaded, q, c.label, a).right for q, c, a in zip(questions, claims, said, strict=True)]
    return sum(good) / len(good)


def main() -> None:
    """Fine-tune, save, judge what was saved, print the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=checker_folder())
    parser.add_argument("--epochs", type=int, default=CheckerRecipe.epochs)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    base = checker_folder().parent / "all-MiniLM-L6-v2"
    if not base.is_dir():
        print(f"skipped: {base} is not there; python scripts/real-models.py brings it")
        raise SystemExit(0)
    torch.manual_seed(options.seed)
    claims = claims_of("checker")
    steps = options.epochs * -(-len(claims) // CheckerRecipe.batch)
    recipe = CheckerRecipe(epochs=options.epochs, seed=options.seed, steps=steps)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, use_safetensors=True)
    begun = time.process_time()
    fine_tune(model, tokenizer, claims, recipe)
    spent = round(time.process_time() - begun)
    with replace_dir_atomic(options.out) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        others = claims_of("trained")
        card = {
            "recipe": asdict(recipe),
            "claims": len(claims),
            "processor seconds": spent,
            "right": {
                "of the claims it was trained on": right(folder, claims[:500]),
                "of claims about other things": right(folder, others[:2000]),
                **{template: right(folder, others[:500], template) for template in ASKED_WORDINGS},
                "of symmetric FEVER, with evidence": right(folder, symmetric()),
            },
            **common.provenance(),
        }
        (folder / "card.json").write_text(json.dumps(common.rounded(card), indent=1) + "\n", encoding="utf-8")
    print(json.dumps(common.rounded(card["right"]), indent=1))


if __name__ == "__main__":
    main()
