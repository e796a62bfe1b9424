"""Build the bundled model: ``python -m lifelong_edit.atlas.build --out DIR [--threads 2] [--seed 0]``.

Writes the tokenizer, the weights in float16 and ``card.json`` with the figures; about a quarter of an hour on two
cores with bfloat16 instructions.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from lifelong_edit.atlas.corpus import paragraphs
from lifelong_edit.atlas.judging import Pair, answered, perplexity, share
from lifelong_edit.atlas.learning import Recipe, encode_statement, new_model, train
from lifelong_edit.atlas.leaving import leave, trained
from lifelong_edit.atlas.tokenizing import train_tokenizer
from lifelong_edit.atlas.world_tables import held_pairs, trained_pairs, untrained_pairs
from lifelong_edit.numerics.devices import multiplies_bfloat16

PROSE_BYTES = 1_200_000
HELD_BYTES = 100_000


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def by_relation(pairs: Sequence[Pair], right: Sequence[bool]) -> dict[str, float]:
    """The share of pairs that are right, by relation."""
    counts: dict[str, list[int]] = {}
    for (fact, _), good in zip(pairs, right, strict=True):
        count = counts.setdefault(fact.relation, [0, 0])
        count[0] += good
        count[1] += 1
    return {name: round(good / total, 4) for name, (good, total) in counts.items()}


def figures(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast) -> dict[str, object]:
    """The shares of pairs answered, in all and by relation, and the perplexity of the held-out prose."""
    result: dict[str, object] = {}
    for name, pairs in (("trained", trained_pairs()), ("withheld", held_pairs()), ("untrained", untrained_pairs())):
        right = answered(model, tokenizer, pairs)
        result[name] = {
            "pairs": len(pairs),
            "answered": round(sum(right) / len(right), 5),
            "by_relation": by_relation(pairs, right),
        }
    result["perplexity_heldout"] = round(perplexity(model, tokenizer, "\n".join(paragraphs("heldout", HELD_BYTES))), 3)
    return result


def build(out: Path, recipe: Recipe, *, half: bool) -> dict[str, object]:
    """Train tokenizer and model, save both under ``out``, judge what was saved, and return the card."""
    begun = time.perf_counter()
    pairs, prose = trained_pairs(), paragraphs("train", PROSE_BYTES)
    tokenizer = train_tokenizer([*(f"{prompt} {fact.target}." for fact, prompt in pairs), *prose], recipe.context)
    statements = [encode_statement(tokenizer, prompt, fact.target) for fact, prompt in pairs]
    stream = [token for text in prose for token in (*tokenizer.encode(text, verbose=False), tokenizer.eos_token_id)]
    _say(f"{len(statements)} statements, {sum(len(s.ids) for s in statements)} tokens; prose {len(stream)} tokens")
    model = new_model(recipe, len(tokenizer), tokenizer.eos_token_id)
    parameters = sum(p.numel() for p in model.parameters())
    _say(f"{parameters} parameters, {parameters * 2 / 1e6:.2f} MB in float16")
    samples = [random.Random(0).sample(some, 400) for some in (pairs, held_pairs())]

    def watch(step: int, line: str) -> None:
        known = ""
        if step % 250 == 0:
            model.eval()
            known = "  trained {:.3f}  withheld {:.3f}".format(*(share(model, tokenizer, s) for s in samples))
            model.train()
        _say(f"step {step}/{recipe.steps}  {line}{known}")

    train(model, statements, stream, recipe, half=half, watch=watch, every=50)
    return leave(
        model,
        tokenizer,
        out,
        recipe,
        lambda read: figures(read, tokenizer),
        lambda: trained(half, time.perf_counter() - begun),
    )


def main() -> None:
    """Parse the command line, build, print the card."""
    parser = argparse.ArgumentParser(
        prog="python -m lifelong_edit.atlas.build", description="Train atlas from scratch."
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder to write the model into")
    parser.add_argument("--threads", type=int, default=2, help="threads to train with")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and order")
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="optimiser steps")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto", help="of the products")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    fast = multiplies_bfloat16(torch.device("cpu"))
    half = fast if args.precision == "auto" else args.precision == "bfloat16"
    card = build(args.out, Recipe(steps=args.steps, seed=args.seed), half=half)
    print(json.dumps(card, indent=2))


if __name__ == "__main__":
    main()
