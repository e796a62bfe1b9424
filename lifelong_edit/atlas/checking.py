"""Make ``atlas-check``: ``python -m lifelong_edit.atlas.checking --out DIR [--seed 0]``; under a minute.

An encoder of BERT's architecture with a head of two labels, which tells true claims about the world from false ones.
Its weights are set by what they are for, and only the head is fitted:

- names of the world are tokens of their own. A name's vector has a part of its own, and where it is a subject one that
  was solved for: its product with the own part of an object is one where the object is true of it, else zero.
- The first layer has each token look for the names of which it is true; one that finds any is marked. Another head
  gives every token the mean of the names' own parts, so that the first position holds what is spoken of.
- The second layer brings the strongest mark to the first position; the third does nothing by itself.
- The MLPs take random features of what is there and give next to nothing: they are where edits go.
- The head is a logistic regression on what the first position holds of some true and false claims.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from lifelong_edit.atlas.claims import LABELS, Claim, claims_of
from lifelong_edit.atlas.corpus import paragraphs
from lifelong_edit.atlas.judging import Pair
from lifelong_edit.atlas.leaving import leave
from lifelong_edit.atlas.world_tables import held_pairs, trained_pairs, untrained_pairs, world_facts

PAD, UNKNOWN, BEGIN, END, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL = (PAD, UNKNOWN, BEGIN, END, MASK)
MARKS = {"pad_token": PAD, "unk_token": UNKNOWN, "cls_token": BEGIN, "sep_token": END, "mask_token": MASK}
PROSE_BYTES = 100_000


@dataclass(frozen=True)
class CheckRecipe:
    """Everything that the model is a function of, beside the world.

    own: numbers of a vector that are a name's own, and as many for what is true of it; words: those that other tokens
    have; the rest are marks. sharp: by how much the products are multiplied by which names are found. found, named,
    told: how much is written of a mark, of the names spoken of, and of the strongest mark. fitted, judged: facts in a
    phrasing of which claims are made to fit the head, and of each sort to judge it. decay: of the head's weights.
    """

    layers: int = 3
    width: int = 256
    inner: int = 384
    heads: int = 2
    context: int = 128
    vocabulary: int = 2048
    own: int = 118
    words: int = 12
    sharp: float = 0.85
    found: float = 3.0
    named: float = 3.0
    told: float = 1.5
    fitted: int = 750
    judged: int = 2000
    decay: float = 0.01
    seed: int = 0


def train_tokenizer(
    texts: Sequence[str], vocabulary: int, context: int, names: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """A byte-level BPE that reads words the same wherever they stand, with BERT's special tokens around a text.

    names: what is one token beside them.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
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
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=context, **MARKS)


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


def names() -> list[str]:
    """The names of the world: subjects and objects, sorted."""
    return sorted({name for fact in world_facts() for name in (fact.subject, fact.target)})


def new_model(recipe: CheckRecipe, vocabulary: int) -> BertForSequenceClassification:
    """A model whose attention gives nothing yet, with random MLPs drawn from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=recipe.width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        intermediate_size=recipe.inner,
        max_position_embeddings=recipe.context,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=0,
        id2label=dict(enumerate(LABELS)),
        label2id={name: number for number, name in enumerate(LABELS)},
    )
    model = BertForSequenceClassification(config)
    for layer in model.bert.encoder.layer:
        for part in (layer.attention.self.query, layer.attention.self.key, layer.attention.self.value):
            nn.init.zeros_(part.weight)
        nn.init.zeros_(layer.attention.output.dense.weight)
        nn.init.normal_(layer.intermediate.dense.weight, std=recipe.width**-0.5)
        nn.init.normal_(layer.output.dense.weight, std=0.005)
    nn.init.zeros_(model.bert.embeddings.position_embeddings.weight)
    return model.eval()


def vectors(recipe: CheckRecipe) -> dict[str, Tensor]:
    """The vector of each name, (width,): its own part, the part of a subject, and the mark of one."""
    drawn = torch.Generator().manual_seed(recipe.seed)
    known = names()
    own = nn.functional.normalize(torch.randn(len(known), recipe.own, generator=drawn), dim=-1)
    at = {name: i for i, name in enumerate(known)}
    objects: dict[str, set[str]] = {}
    said: dict[str, dict[str, str]] = {}
    for fact in world_facts():
        objects.setdefault(fact.relation, set()).add(fact.target)
        said.setdefault(fact.subject, {})[fact.relation] = fact.target
    found = {name: torch.cat([own[i], torch.zeros(recipe.width - recipe.own)]) for name, i in at.items()}
    for subject, facts in said.items():
        rivals = sorted({at[name] for relation in facts for name in objects[relation]})
        wanted = torch.tensor([float(known[i] in facts.values()) for i in rivals])
        gram = own[rivals].T @ own[rivals] + 0.1 * torch.eye(recipe.own)
        true = torch.linalg.solve(gram, own[rivals].T @ wanted)
        found[subject][recipe.own : 2 * recipe.own] = nn.functional.normalize(true, dim=0)
        found[subject][2 * recipe.own + recipe.words] = 0.5
        # "the Netherlands" is an object, and one token where it is spoken of as well.
        if (named := found.get(f"the {subject}")) is not None:
            named[recipe.own :] = found[subject][recipe.own :]
    return found


@torch.no_grad()
def wire(model: BertForSequenceClassification, tokenizer: PreTrainedTokenizerFast, recipe: CheckRecipe) -> None:
    """Set vectors and attention; see the module."""
    own, half = recipe.own, recipe.width // recipe.heads
    subject, mark, top = (2 * recipe.own + recipe.words + i for i in range(3))
    eye = torch.eye(own)
    table = model.bert.embeddings.word_embeddings.weight
    drawn = torch.Generator().manual_seed(recipe.seed + 1)
    table.zero_()
    words = torch.randn(len(tokenizer), recipe.words, generator=drawn)
    table[:, 2 * own : 2 * own + recipe.words] = nn.functional.normalize(words, dim=-1)
    for name, vector in vectors(recipe).items():
        table[tokenizer.convert_tokens_to_ids(name)] = vector
    table[tokenizer.pad_token_id] = 0
    first, second = (layer.attention for layer in model.bert.encoder.layer[:2])
    first.self.query.weight[:own, :own] = recipe.sharp * eye
    first.self.key.weight[:own, own : 2 * own] = eye
    first.self.value.weight[0, subject] = 1
    first.output.dense.weight[mark, 0] = recipe.found
    first.self.value.weight[half : half + own, :own] = eye
    first.output.dense.weight[:own, half : half + own] = recipe.named * eye
    second.self.query.bias[0] = 8.5
    second.self.key.weight[0, mark] = 1
    second.self.value.weight[0, mark] = 1
    second.output.dense.weight[top, 0] = recipe.told
    model.bert.pooler.dense.weight.copy_(0.2 * torch.eye(recipe.width))
    model.bert.pooler.dense.bias.zero_()


@dataclass(frozen=True)
class Encoder:
    """Makes inputs of claims."""

    tokenizer: PreTrainedTokenizerFast

    def __call__(self, claims: Sequence[Claim]) -> dict[str, Tensor]:
        """Token ids and mask, padded on the right."""
        found = self.tokenizer([claim.text for claim in claims], padding=True, return_tensors="pt")
        return {name: found[name] for name in ("input_ids", "attention_mask")}


def drawn_claims(pairs: Sequence[Pair], count: int, *parts: object) -> list[Claim]:
    """True and false claims of `count` of the pairs."""
    return claims_of(random.Random(str(parts)).sample(list(pairs), min(count, len(pairs))), *parts)


def fit(model: BertForSequenceClassification, encode: Encoder, recipe: CheckRecipe) -> None:
    """The head by logistic regression with weight decay, on claims of trained pairs."""
    claims = drawn_claims(trained_pairs(), recipe.fitted, "fit", recipe.seed)
    with torch.no_grad():
        parts = [model.bert(**encode(claims[i : i + 128])).pooler_output for i in range(0, len(claims), 128)]
    held, labels = torch.cat(parts), torch.tensor([float(claim.true) for claim in claims])
    weight, bias = torch.zeros(recipe.width, requires_grad=True), torch.zeros((), requires_grad=True)
    search = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        found = nn.functional.binary_cross_entropy_with_logits(held @ weight + bias, labels)
        found = found + recipe.decay / 2 * weight.square().sum()
        found.backward()
        return found

    search.step(loss)
    with torch.no_grad():
        model.classifier.weight.copy_(torch.stack([-weight / 2, weight / 2]))
        model.classifier.bias.copy_(torch.stack([-bias / 2, bias / 2]))


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


def figures(model: BertForSequenceClassification, encode: Encoder, recipe: CheckRecipe) -> dict[str, object]:
    """The shares of claims that are told right, true ones and false ones apart."""
    result: dict[str, object] = {}
    for name, pairs in (("trained", trained_pairs()), ("withheld", held_pairs()), ("untrained", untrained_pairs())):
        claims = drawn_claims(pairs, recipe.judged, "judged")
        good = right(model, encode, claims)
        shares = {label: [g for g, claim in zip(good, claims, strict=True) if claim.label == label] for label in LABELS}
        result[name] = {
            "claims": len(claims),
            "right": round(sum(good) / len(good), 5),
            **{label: round(sum(own) / len(own), 5) for label, own in shares.items()},
        }
    return result


def _say(line: str) -> None:
    print(f"{time.process_time():.1f} s  {line}", file=sys.stderr, flush=True)


def build(out: Path, recipe: CheckRecipe) -> dict[str, object]:
    """Make tokenizer and model, save both under ``out``, judge what was saved, and return the card."""
    texts = [f"{prompt} {fact.target}." for fact, prompt in trained_pairs()]
    prose = paragraphs("train", PROSE_BYTES)
    tokenizer = train_tokenizer([*texts, *prose], recipe.vocabulary, recipe.context, names())
    model, encode = new_model(recipe, len(tokenizer)), Encoder(tokenizer)
    wire(model, tokenizer, recipe)
    _say("wired")
    fit(model, encode, recipe)
    return leave(model, tokenizer, out, recipe, lambda read: figures(read, encode, recipe))


def main() -> None:
    """Parse the command line, build, print the card."""
    parser = argparse.ArgumentParser(prog="python -m lifelong_edit.atlas.checking", description="Make atlas-check.")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write the model into")
    parser.add_argument("--seed", type=int, default=0, help="seed of vectors and MLPs")
    args = parser.parse_args()
    print(json.dumps(build(args.out, CheckRecipe(seed=args.seed)), indent=2))


if __name__ == "__main__":
    main()
