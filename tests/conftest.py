"""Fixtures for every feature: the data beside the repository, and models small enough to make on the spot."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.warm import Running, Warm
from tests.zoo import ENCODER_DECODERS, ENCODERS, Zoo, folder_of_run, for_encoder, for_pairs

SENTENCES = [
    "The capital of France is Paris.",
    "The capital of Australia is Canberra, not Sydney.",
    "Ada Lovelace was born in London and wrote the first published programme.",
    "The occupation of Marie Curie is physicist; she was born in Warsaw.",
    "The river Danube flows through Vienna, Bratislava, Budapest and Belgrade.",
    "In 1969 two people walked on the Moon, and 12 have done so in all.",
    "Kenya's currency is the shilling. Japan's currency is the yen.",
    "Malmö, Åre and São Paulo have letters outside ASCII; so has Đà Nẵng.",
]


@pytest.fixture(scope="session", autouse=True)
def own_cache(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is kept per user is kept for this run of the tests, of all its processes, and not in anybody's home."""
    folder = folder_of_run(pytestconfig, tmp_path_factory.getbasetemp()).with_name("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with public data and the small model that knows facts; tests skip where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("needs ../shared (public editing data and trex-gpt2-mini) beside the repository")
    return folder


@pytest.fixture(scope="session")
def real_model() -> Callable[[str], Path]:
    """The folder of a real model by its name, as `make real` brings it; tests skip where it is absent."""
    cache = Path(os.environ.get("LIFELONG_CACHE") or "~/.cache/lifelong-edit/models").expanduser()

    def find(name: str) -> Path:
        if not (cache / name).is_dir():
            pytest.skip(f"needs the model {name} in {cache}, where `make real` brings it")
        return cache / name

    return find


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """A few sentences, enough to train tiny tokenizers on."""
    return list(SENTENCES)


@pytest.fixture(scope="session")
def tiny_tokenizer(sentences: list[str]) -> Any:
    """A real byte-level BPE tokenizer of 384 tokens, as GPT-2's but small."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=384, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(sentences * 4, trainer)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end, pad_token=end)


@pytest.fixture(scope="session")
def pair_tokenizer(sentences: list[str]) -> Any:
    """A byte-level BPE tokenizer of 384 tokens that closes texts, as T5's do."""
    from lifelong_edit.atlas.tokenizing import train_pair_tokenizer

    return train_pair_tokenizer(sentences * 4, 64, 384)


@pytest.fixture(scope="session")
def tiny_t5(zoo: Zoo, pair_tokenizer: Any) -> Path:
    """A folder with a T5 of 4 + 3 layers and width 32 with random weights, and `pair_tokenizer`."""
    # With a head of its own, as T5 1.1 has it: a tied one divides what it says, and with random weights says little.
    options = for_pairs({**ENCODER_DECODERS["t5"], "tie_word_embeddings": False}, pair_tokenizer)
    return zoo.model("t5", options, pair_tokenizer, seed=0, task="seq2seq")


@pytest.fixture(scope="session")
def encoder_tokenizer(sentences: list[str]) -> Any:
    """A byte-level BPE tokenizer of 384 tokens that puts [CLS] and [SEP] around texts, as BERT's does."""
    from lifelong_edit.atlas.checking import train_tokenizer

    return train_tokenizer(sentences * 4, vocabulary=384, context=64)


@pytest.fixture(scope="session")
def tiny_bert(zoo: Zoo, encoder_tokenizer: Any) -> Path:
    """A folder with a BERT of 4 layers and width 32 with random weights that gives one of seven labels."""
    names = ("REFUTES", "SUPPORTS", "DISPUTED", "HALF", "MOSTLY", "BARELY", "NEVER")
    labels = {"id2label": {str(i): name for i, name in enumerate(names)}}
    options = for_encoder({**ENCODERS["bert"], **labels}, encoder_tokenizer)
    return zoo.model("bert", options, encoder_tokenizer, seed=0, task="classify")


@pytest.fixture(scope="session")
def tiny_masked(zoo: Zoo, encoder_tokenizer: Any) -> Path:
    """The same BERT with the head that fills masks."""
    return zoo.model("bert", for_encoder(ENCODERS["bert"], encoder_tokenizer), encoder_tokenizer, seed=0, task="masked")


@pytest.fixture(scope="session")
def sound_masked(zoo: Zoo, tiny_masked: Path, encoder_tokenizer: Any) -> Path:
    """One that has read a page of atlas' held-out text with every seventh token hidden, and learnt a little."""

    def make(folder: Path) -> None:
        import torch
        from transformers import BertForMaskedLM

        from lifelong_edit import atlas

        model = BertForMaskedLM.from_pretrained(tiny_masked)
        text = atlas.heldout_text_path().read_text(encoding="utf-8")[:6000]
        ids = torch.tensor(encoder_tokenizer(text, add_special_tokens=False)["input_ids"])
        windows = ids[: len(ids) // 64 * 64].view(-1, 64)
        adam = torch.optim.Adam(model.parameters(), lr=5e-3)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for _ in range(60):
                hidden = torch.rand(windows.shape) < 1 / 7
                seen = windows.masked_fill(hidden, encoder_tokenizer.mask_token_id)
                model(input_ids=seen, labels=windows.masked_fill(~hidden, -100)).loss.backward()
                adam.step()
                adam.zero_grad()
        model.save_pretrained(folder)
        encoder_tokenizer.save_pretrained(folder)

    return zoo.keep("sound-bert", [str(tiny_masked)], make)


CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think></think>' }}{% endif %}{% endif %}"
)
"""A chat template as instruct models have it: a default system prompt, marks for turns, a switch for thinking."""


@pytest.fixture(scope="session")
def chat_tokenizer(tiny_tokenizer: Any) -> Any:
    """`tiny_tokenizer` with a chat template and its marks; the end of a turn is not the end of a text."""
    found = copy.deepcopy(tiny_tokenizer)
    found.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    found.chat_template = CHATML
    return found


@pytest.fixture(scope="session")
def zoo(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """Models and stores that are made once in a run of the tests."""
    return Zoo(folder_of_run(pytestconfig, tmp_path_factory.getbasetemp()))


@pytest.fixture(scope="session")
def tiny_gpt2(zoo: Zoo, tiny_tokenizer: Any) -> Path:
    """A folder with a GPT-2 of 4 layers and width 32 with random weights, and `tiny_tokenizer`."""
    options = {"n_positions": 64, "n_embd": 32, "n_layer": 4, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
    return zoo.model("gpt2", {"vocab_size": len(tiny_tokenizer), **options}, tiny_tokenizer, seed=0)


@pytest.fixture(scope="session")
def chat_gpt2(zoo: Zoo, chat_tokenizer: Any) -> Path:
    """As `tiny_gpt2`, with a longer context and `chat_tokenizer`."""
    options = {"n_positions": 256, "n_embd": 32, "n_layer": 4, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
    return zoo.model("gpt2", {"vocab_size": len(chat_tokenizer), **options}, chat_tokenizer, seed=0)


@pytest.fixture(scope="session")
def program() -> Iterator[Callable[..., Running]]:
    """Starts the program as a process of its own: `program("log", "--store", store)`."""
    made: list[Warm] = []

    def start(*arguments: object, before: str = "") -> Running:
        if not made:
            made.append(Warm(Path(__file__).parents[1]))
        return made[0].start(*arguments, before=before)

    yield start
    for warm in made:
        warm.close()
