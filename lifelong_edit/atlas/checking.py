"""Build ``atlas-check``: ``python -m lifelong_edit.atlas.checking --out DIR [--threads 2] [--seed 0]``.

An encoder of BERT's architecture with a head of two labels, which tells true claims about the world from false ones.
Names are tokens of their own. A name begins with the sum of the vectors of what is true of it in one half of its vector
and a vector of its own in the other, and the queries and keys of the first layer begin so that a name looks for those
of which it is true: what takes a model long to find out, that an object is to be compared with its subject, is there
from the first step. While it is trained two more heads name the subject and the object said from what the first
position holds, so that it tells claims apart; they are not kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from lifelong_edit.atlas.claims import LABELS, Claim, claims_of
from lifelong_edit.atlas.corpus import paragraphs
from lifelong_edit.atlas.muon import Muon
from lifelong_edit.atlas.world_tables import held_pairs, trained_pairs, untrained_pairs, world_facts
from lifelong_edit.numerics.devices import multiplies_bfloat16

PAD, UNKNOWN, BEGIN, END, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL = (PAD, UNKNOWN, BEGIN, END, MASK)
MARKS = {"pad_token": PAD, "unk_token": UNKNOWN, "cls_token": BEGIN, "sep_token": END, "mask_token": MASK}
PROSE_BYTES = 100_000
JUDGED = 6_000  # claims of each sort that the card speaks of, at most


@dataclass(frozen=True)
class CheckRecipe:
    """Everything that the training is a function of, beside its claims."""

    layers: int = 3
    width: int = 128
    inner: int = 384
    heads: int = 4
    context: int = 128
    vocabulary: int = 2048  # beside the names
    steps: int = 400
    batch: int = 96
    named: float = 0.1  # weight of the losses of the heads that name what is spoken of
    matrix_rate: float = 0.01
    vector_rate: float = 3e-3
    warm_up: int = 20
    seed: int = 0


def train_tokenizer(texts: Sequence[str], recipe: CheckRecipe, names: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A byte-level BPE that reads words the same wherever they stand, with BERT's special tokens around a text.

    names: what is one token beside them.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        min_frequency=2,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(name, single_word=True, lstrip=True, normalized=False) for name in names])
    ids = {name: tokenizer.token_to_id(name) for name in SPECIAL}
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}",
        pair=f"{BEGIN} $A {END} $B:1 {END}:1",
        special_tokens=[(BEGIN, ids[BEGIN]), (END, ids[END])],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=recipe.context, **MARKS)


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a tokenizer as transformers 4 and 5 read it."""
    tokenizer.save_pretrained(folder)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": tokenizer.model_max_length,
        **MARKS,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def new_model(recipe: CheckRecipe, vocabulary: int) -> BertForSequenceClassification:
    """A model with random weights drawn from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=recipe.width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        intermediate_size=recipe.inner,
        max_position_embeddings=recipe.context,
        hidden_act="gelu_pytorch_tanh",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=0,
        id2label=dict(enumerate(LABELS)),
        label2id={name: number for number, name in enumerate(LABELS)},
    )
    return BertForSequenceClassification(config)


def names() -> list[str]:
    """The names of the world: subjects and objects, sorted."""
    return sorted({name for fact in world_facts() for name in (fact.subject, fact.target)})


@torch.no_grad()
def begin(model: BertForSequenceClassification, tokenizer: PreTrainedTokenizerFast, recipe: CheckRecipe) -> None:
    """Put into vectors and first layer what a name is compared by; see the module."""
    ids = dict(zip(names(), tokenizer.convert_tokens_to_ids(names()), strict=True))
    random_, half = torch.Generator().manual_seed(recipe.seed), recipe.width // 2
    own = nn.functional.normalize(torch.randn(len(tokenizer), half, generator=random_), dim=-1)
    true = torch.zeros(len(tokenizer), half)
    for fact in world_facts():
        true[ids[fact.subject]] += own[ids[fact.target]]
    vectors = torch.cat([nn.functional.normalize(true, dim=-1), own], 1)
    model.bert.embeddings.word_embeddings.weight[list(ids.values())] = 0.5 * vectors[list(ids.values())]
    attention = model.bert.encoder.layer[0].attention.self
    turned, _ = torch.linalg.qr(torch.randn(recipe.width, recipe.width, generator=random_))
    attention.query.weight.copy_(torch.cat([torch.zeros(recipe.width, half), turned[:, :half]], 1))
    attention.key.weight.copy_(torch.cat([turned[:, :half], torch.zeros(recipe.width, half)], 1))


@dataclass(frozen=True)
class Encoder:
    """Makes inputs of claims."""

    tokenizer: PreTrainedTokenizerFast

    def __call__(self, claims: Sequence[Claim]) -> dict[str, Tensor]:
        """Token ids and mask, padded on the right."""
        found = self.tokenizer([claim.text for claim in claims], padding=True, return_tensors="pt")
        return {name: found[name] for name in ("input_ids", "attention_mask")}


def batches(recipe: CheckRecipe) -> Iterator[list[Claim]]:
    """Endless batches of claims of similar length: all trained pairs in each round, with other false objects each."""
    rng, pairs, round_ = random.Random(recipe.seed), trained_pairs(), 0
    while True:
        claims = claims_of(pairs, "train", recipe.seed, round_)
        rng.shuffle(claims)
        size, part = recipe.batch, 20 * recipe.batch
        for start in range(0, len(claims), part):
            near = sorted(claims[start : start + part], key=lambda claim: len(claim.text))
            cut = [near[i : i + size] for i in range(0, len(near), size)]
            rng.shuffle(cut)
            yield from cut
        round_ += 1


def slope(step: int, recipe: CheckRecipe) -> float:
    """The learning rates at a step, relative to their peak: linear warm-up, a plateau, linear descent to zero."""
    return min((step + 1) / recipe.warm_up, (recipe.steps - step) / (recipe.steps * 0.7), 1.0)


def train(model: BertForSequenceClassification, encode: Encoder, recipe: CheckRecipe, *, half: bool) -> None:
    """Train in place, with bfloat16 products if ``half``."""
    spoken = {name: i for i, name in enumerate(names())}
    naming = nn.Linear(recipe.width, 2 * len(spoken))
    inner = [p for name, p in model.named_parameters() if p.dim() == 2 and ".layer." in name]
    outer = [p for name, p in model.named_parameters() if not (p.dim() == 2 and ".layer." in name)]
    muon = Muon(inner, half=half)
    adam = torch.optim.AdamW([*outer, *naming.parameters()], betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    model.train()
    begun, sums = time.perf_counter(), [0.0, 0.0, 0.0]
    for step, claims in zip(range(recipe.steps), batches(recipe), strict=False):
        labels = torch.tensor([int(claim.true) for claim in claims])
        of = torch.tensor([[spoken[claim.fact.subject], spoken[claim.said]] for claim in claims])
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            out = model(**encode(claims), output_hidden_states=True)
            named = naming(out.hidden_states[-1][:, 0]).view(len(claims) * 2, -1)
        told = nn.functional.cross_entropy(out.logits.float(), labels)
        aside = nn.functional.cross_entropy(named.float(), of.flatten())
        (told + recipe.named * aside).backward()
        now = slope(step, recipe)
        adam.param_groups[0]["lr"] = recipe.vector_rate * now
        adam.step()
        adam.zero_grad()
        muon.step(recipe.matrix_rate * now)
        right = float((out.logits.argmax(-1) == labels).float().mean())
        sums = [s + f for s, f in zip(sums, (told.item(), aside.item(), right), strict=True)]
        if (step + 1) % 10 == 0:
            line = "  ".join(f"{s / 10:.4f}" for s in sums)
            _say(f"step {step + 1}/{recipe.steps}  loss, naming, right: {line}  {time.perf_counter() - begun:.0f} s")
            sums = [0.0, 0.0, 0.0]
    model.eval()


@torch.no_grad()
def right(model: BertForSequenceClassification, encode: Encoder, claims: Sequence[Claim]) -> list[bool]:
    """For each claim whether the more probable label is its own."""
    order = sorted(range(len(claims)), key=lambda i: len(claims[i].text))
    found = [False] * len(claims)
    for start in range(0, len(order), 256):
        part = order[start : start + 256]
        best = model(**encode([claims[i] for i in part])).logits.argmax(-1).tolist()
        for i, label in zip(part, best, strict=True):
            found[i] = LABELS[label] == claims[i].label
    return found


def figures(model: BertForSequenceClassification, encode: Encoder) -> dict[str, object]:
    """The shares of claims that are told right, true ones and false ones apart."""
    result: dict[str, object] = {}
    for name, pairs in (("trained", trained_pairs()), ("withheld", held_pairs()), ("untrained", untrained_pairs())):
        claims = claims_of(random.Random(0).sample(pairs, min(len(pairs), JUDGED // 2)), "judged")
        good = right(model, encode, claims)
        shares = {label: [g for g, claim in zip(good, claims, strict=True) if claim.label == label] for label in LABELS}
        result[name] = {
            "claims": len(claims),
            "right": round(sum(good) / len(good), 5),
            **{label: round(sum(own) / len(own), 5) for label, own in shares.items()},
        }
    return result


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def build(out: Path, recipe: CheckRecipe, *, half: bool) -> dict[str, object]:
    """Train tokenizer and model, save both under ``out``, judge what was saved, and return the card."""
    begun = time.perf_counter()
    texts = [f"{prompt} {fact.target}." for fact, prompt in trained_pairs()]
    tokenizer = train_tokenizer([*texts, *paragraphs("train", PROSE_BYTES)], recipe, names())
    model, encode = new_model(recipe, len(tokenizer)), Encoder(tokenizer)
    begin(model, tokenizer, recipe)
    _say(f"{sum(p.numel() for p in model.parameters())} parameters")
    train(model, encode, recipe, half=half)
    out.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, out)
    model.half().save_pretrained(out)
    card = {
        "facts": len(world_facts()),
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes": (out / "model.safetensors").stat().st_size,
        "recipe": dataclasses.asdict(recipe),
        "precision": "bfloat16 products, float32 sums" if half else "float32",
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
        **figures(BertForSequenceClassification.from_pretrained(out, dtype=torch.float32).eval(), encode),
        "seconds": round(time.perf_counter() - begun),
    }
    (out / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    return card


def main() -> None:
    """Parse the command line, build, print the card."""
    parser = argparse.ArgumentParser(prog="python -m lifelong_edit.atlas.checking", description="Train atlas-check.")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write the model into")
    parser.add_argument("--threads", type=int, default=2, help="threads to train with")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and order")
    parser.add_argument("--steps", type=int, default=CheckRecipe.steps, help="optimiser steps")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto", help="of the products")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    fast = multiplies_bfloat16(torch.device("cpu"))
    half = fast if args.precision == "auto" else args.precision == "bfloat16"
    card = build(args.out, CheckRecipe(steps=args.steps, seed=args.seed), half=half)
    print(json.dumps(card, indent=2))


if __name__ == "__main__":
    main()
