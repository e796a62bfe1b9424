"""atlas' tokenizer: byte-level BPE, trained on the statements and the prose that the model reads."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

END = "<|endoftext|>"
VOCABULARY = 3584
PAD, CLOSE = "<pad>", "</s>"


def train_tokenizer(texts: Iterable[str], context: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of ``VOCABULARY`` entries whose one special token ends, begins and pads.

    No prefix space is added, so the tokens of ``prompt + " " + target`` are those of the prompt followed by those of
    the target with its space: pre-tokenisation never joins a word to the one before it.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=2,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def train_pair_tokenizer(texts: Iterable[str], context: int, vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """A byte-level BPE of so many entries as T5's tokenizers are: a blank in front, the closing token behind.

    So a name has the same tokens at the front of an answer as within a question.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=[PAD, CLOSE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {CLOSE}", special_tokens=[(CLOSE, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=CLOSE,
        pad_token=PAD,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write ``tokenizer.json`` and its configuration into a folder that ``AutoTokenizer`` then loads."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    # transformers 5 writes a class name that transformers 4 does not know; both know this one.
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": tokenizer.model_max_length,
        **tokenizer.special_tokens_map,
    }
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
