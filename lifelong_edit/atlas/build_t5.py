"""Build the bundled encoder-decoder: ``python -m lifelong_edit.atlas.build_t5 --out DIR [--threads 1] [--seed 0]``.

Writes the tokenizer, the weights in float16 and ``card.json`` with the figures.
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
from transformers import PreTrainedTokenizerFast, T5ForConditionalGeneration

from lifelong_edit.atlas.answering import AnsweringRecipe, encode_pair, new_model, padded, train
from lifelong_edit.atlas.build import PROSE_BYTES, by_relation
from lifelong_edit.atlas.corpus import paragraphs
from lifelong_edit.atlas.judging import Pair
from lifelong_edit.atlas.leaving import leave, trained
from lifelong_edit.atlas.questions import asked_pairs
from lifelong_edit.atlas.tokenizing import train_pair_tokenizer
from lifelong_edit.atlas.world_tables import untrained_pairs
from lifelong_edit.numerics.devices import multiplies_bfloat16

EVERY = 5  # of the pairs one in so many is judged
SHARE = 0.25  # of the prose, enough for what little of it an answering model needs


@torch.no_grad()
def answered(
    model: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, pairs: Sequence[Pair], size: int = 256
) -> list[bool]:
    """For each (fact, prompt), whether greedy generation gives the answer and the closing token, and no other.

    It does exactly if every token of them is the argmax after those before it, so one forward pass judges a prompt.
    """
    encoded = [encode_pair(tokenizer, prompt, fact.target) for fact, prompt in pairs]
    order = sorted(range(len(pairs)), key=lambda i: len(encoded[i].read))
    result = [False] * len(pairs)
    for start in range(0, len(order), size):
        part = order[start : start + size]
        ids, mask, labels = padded([encoded[i] for i in part], tokenizer.pad_token_id)
        best = model(input_ids=ids, attention_mask=mask, labels=labels).logits.argmax(-1)
        for i, row in zip(part, best, strict=True):
            wanted = encoded[i].write
            result[i] = tuple(row[: len(wanted)].tolist()) == wanted
    return result


def figures(model: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> dict[str, object]:
    """The shares of pairs answered, of every fifth, in all and by relation."""
    result: dict[str, object] = {}
    trained, withheld = asked_pairs(withheld=False), asked_pairs(withheld=True)
    for name, pairs in (("trained", trained), ("withheld", withheld), ("untrained", untrained_pairs())):
        pairs = pairs[::EVERY]
        right = answered(model, tokenizer, pairs)
        result[name] = {
            "pairs": len(pairs),
            "answered": round(sum(right) / len(right), 5),
            "by_relation": by_relation(pairs, right),
        }
    return result


def build(out: Path, recipe: AnsweringRecipe, *, half: bool) -> dict[str, object]:
    """Train tokenizer and model, save both under ``out``, judge what was saved, and return the card."""
    begun = time.perf_counter()
    pairs, prose = asked_pairs(withheld=False), paragraphs("train", int(PROSE_BYTES * SHARE))
    tokenizer = train_pair_tokenizer([text for f, q in pairs for text in (q, f.target)] + prose, recipe.context)
    taught = [encode_pair(tokenizer, question, fact.target) for fact, question in pairs]
    ids = (tokenizer.encode(text, add_special_tokens=False, verbose=False) for text in prose)
    stream = [token for text in ids for token in text]
    model = new_model(recipe, len(tokenizer), tokenizer)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{len(taught)} pairs, prose {len(stream)} tokens, {parameters} parameters", file=sys.stderr, flush=True)
    samples = [random.Random(0).sample(asked_pairs(withheld=held), 400) for held in (False, True)]

    def watch(step: int, line: str) -> None:
        known = ""
        if step % 250 == 0:
            model.eval()
            shares = [sum(answered(model, tokenizer, s)) / len(s) for s in samples]
            known = "  trained {:.3f}  withheld {:.3f}".format(*shares)
            model.train()
        print(f"step {step}/{recipe.stop}  {line}{known}", file=sys.stderr, flush=True)

    train(model, taught, stream, recipe, half=half, watch=watch)
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
    parser = argparse.ArgumentParser(prog="python -m lifelong_edit.atlas.build_t5", description="Train atlas-t5.")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write the model into")
    parser.add_argument("--threads", type=int, default=1, help="threads to train with")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and order")
    parser.add_argument("--stop", type=int, default=AnsweringRecipe.stop, help="optimiser steps")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    half = multiplies_bfloat16(torch.device("cpu"))
    print(json.dumps(build(args.out, AnsweringRecipe(stop=args.stop, seed=args.seed), half=half), indent=2))


if __name__ == "__main__":
    main()
