"""A model of GPT-2-small's shape with random weights behind GPT-2's real tokenizer, and real facts to edit into it.

Time depends on shapes and token counts, not on what the weights know; so random ones measure as well as real ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import msgspec
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from benchmarks.common import shared
from benchmarks.data import wikitext
from lifelong_edit.facts import Fact, Probe, read_facts, read_prompts

END = "<|endoftext|>"


def build(folder: Path, seed: int = 0) -> Path:
    """12 layers of width 768, 12 heads, 50,257 tokens, 124 M parameters, as a folder that transformers loads."""
    tokenizer = Tokenizer(
        models.BPE.from_file(
            str(shared("data", "gpt2-tokenizer", "encoder.json")), str(shared("data", "gpt2-tokenizer", "vocab.bpe"))
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, bos_token=END, unk_token=END)
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    GPT2LMHeadModel(GPT2Config(bos_token_id=50256, eos_token_id=50256)).save_pretrained(folder)
    return folder


def counterfact(count: int, start: int = 0) -> list[Fact]:
    """CounterFact records as facts, from the split that is for editing, each subject once."""
    facts: dict[str, Fact] = {}
    for record in read_facts([str(shared("data", "counterfact", "counterfact-edit.json"))]):
        facts.setdefault(record.fact.subject.casefold(), record.fact)
        if len(facts) == start + count:
            break
    return list(facts.values())[start:]


def probes(path: Path) -> Iterator[Probe]:
    """The prompts of a file of facts, of any shape."""
    return read_prompts([str(path)])


def preserved(count: int) -> list[Probe]:
    """Prompts whose answers must stay, from the split that is for training."""
    return list(islice(probes(shared("data", "counterfact", "counterfact-train.json")), count))


def text() -> list[str]:
    """WikiText-2's validation text, for the gram of text keys and the gate's perplexity."""
    return [wikitext("valid")]


def write_facts(path: Path, facts: list[Fact]) -> Path:
    """The facts as native records, one a line."""
    path.write_bytes(b"".join(msgspec.json.encode(fact) + b"\n" for fact in facts))
    return path
