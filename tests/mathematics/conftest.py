"""A bench on tiny models, facts of different lengths, and networks that have something to say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from lifelong_edit.bench import Bench, Fixed, prepare
from lifelong_edit.editors.contract import Change, Editor, Whole
from lifelong_edit.editors.malmen.network import NetworkConfig, NetworkSet
from lifelong_edit.editors.malmen.rule import with_networks
from lifelong_edit.editors.registry import rule_of
from lifelong_edit.editors.ridge.editor import RidgeEditor
from lifelong_edit.editors.ridge.passes import RowSystem, one_pass
from lifelong_edit.editors.ridge.settings import Settings
from lifelong_edit.editors.ridge.targets import Asker
from lifelong_edit.facts import Fact, Probe
from lifelong_edit.models import LoadedModel, load_model
from lifelong_edit.numerics.solver import Held
from lifelong_edit.stores import MOMENTS, WEIGHTS, FactKeys, Shift
from lifelong_edit.tracing.rows import Row
from tests.zoo import Zoo

PLACES = ("Paris", "London", "Vienna", "Warsaw", "Belgrade", "Sydney", "São Paulo", "Kenya", "Japan", "Malmö")
BASIC = Settings(
    more_passes=0, passes=2, rehearse=3, preserved=6, c0=50.0, text_tokens=3000, phrasings=2, micro_batch=8, eta=2.0
)
MakeBench = Callable[..., Bench]
MakeEditor = Callable[..., RidgeEditor]
Stand = Callable[[LoadedModel, Mapping[str, Tensor]], LoadedModel]


def editor_of(bench: Bench, networks: NetworkSet | None = None) -> RidgeEditor:
    """The rule that the settings of a bench name, at work on it."""
    if networks is not None:
        return with_networks(bench, networks)
    made: Editor = rule_of(bench.settings.editor).make(bench)
    assert isinstance(made, RidgeEditor)
    return made


def gram_of(
    editor: RidgeEditor,
    module: str,
    live: Mapping[str, FactKeys] | None = None,
    subjects: frozenset[str] = frozenset(),
) -> Tensor:
    """P of a module as a batch has it, (d_in, d_in) float64."""
    return editor.preservation.gram(module, editor.settings, editor.settings.preserved_keys, live or {}, subjects)


def held_of(editor: RidgeEditor, rows: Sequence[Row], passes: int) -> Held:
    """P of every module where nothing is live, for so many passes over rows."""
    return editor.preservation.held(editor.settings, editor.ridges(), {}, rows, passes, frozenset())


def passed(editor: RidgeEditor, asker: Asker, rows: Sequence[Row], held: Held) -> RowSystem:
    """One pass over rows at the model's present weights."""
    system = RowSystem(held, editor.ridges())
    one_pass(editor.bench, asker, rows, system, editor.settings.preserved_step)
    return system


def shift_of(change: Change) -> Mapping[str, Shift]:
    """What a batch's change adds to the weights, by module."""
    assert change.shift is not None
    return change.shift


def whole_of(change: Change) -> dict[str, Tensor]:
    """The weights that a change gives whole, by module (d_in, d_out) float32."""
    weights = change.parts[WEIGHTS]
    assert isinstance(weights, Whole)
    return {name: torch.from_numpy(array) for name, array in weights.arrays.items()}


def moments_of(change: Change) -> Mapping[str, np.ndarray]:
    """What the rule remembers after a change; empty for most."""
    moments = change.parts.get(MOMENTS, Whole({}))
    assert isinstance(moments, Whole)
    return moments.arrays


def make_fact(number: int) -> Fact:
    """One of a series of facts whose prompts and answers differ in length."""
    name = PLACES[number % 10] + " the Great" * (number % 3)
    name += f" {number}" * (number >= 10)
    return Fact(
        subject=name,
        prompt=f"The capital of {name} is",
        target=PLACES[(number + 3) % 10] + " on the river" * (number % 2),
        relation="capital",
        rephrases=(f"{name} has the capital", f"In {name} the first city of the river people is"),
    )


@pytest.fixture(scope="session")
def news() -> list[Fact]:
    """Twelve facts of one relation about different subjects."""
    return [make_fact(i) for i in range(12)]


@pytest.fixture(scope="session")
def probes(sentences: list[str]) -> list[Probe]:
    """Prompts whose answers have to stay; the first two are about subjects of `news`."""
    about = [
        Probe(prompt="The currency of Paris is", subject="Paris"),
        Probe(prompt="Who lives in", subject="LONDON the Great"),
    ]
    return about + [
        Probe(f"None {i} says: {s.rsplit(' ', 1)[0]}", subject=f"none {i}") for i, s in enumerate(sentences)
    ]


@pytest.fixture(scope="session")
def tiny_llama(zoo: Zoo, tiny_tokenizer: Any) -> Path:
    """A folder with a Llama of 4 layers and random weights: its matrices are stored transposed."""
    options = {
        "vocab_size": len(tiny_tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    return zoo.model("llama", options, tiny_tokenizer, seed=3)


@pytest.fixture(scope="session")
def tiny_opt(zoo: Zoo, tiny_tokenizer: Any) -> Path:
    """A folder with an OPT of 4 layers and random weights: its MLP sees batch and positions as one dimension."""
    options = {
        "vocab_size": len(tiny_tokenizer),
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 32,
        "max_position_embeddings": 64,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 1,
    }
    return zoo.model("opt", options, tiny_tokenizer, seed=3)


@pytest.fixture(scope="session")
def sentences_of(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Callable[[int], Path]:
    """A folder with a BERT of random weights."""
    from transformers import BertConfig, BertModel

    def make(seed: int) -> Path:
        folder = tmp_path_factory.mktemp("encoder") / "bert"
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            BertModel(BertConfig(vocab_size=len(tiny_tokenizer), **sizes)).save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def gpt2(tiny_gpt2: Path) -> LoadedModel:
    """The tiny GPT-2, loaded once; ask for `loaded` to have it at its base weights. Edited at both kinds of places."""
    return load_model(str(tiny_gpt2), modules=["0-1@subject", "2-3"])


@pytest.fixture
def loaded(gpt2: LoadedModel) -> Iterator[LoadedModel]:
    """The tiny GPT-2 at its base weights: whoever moves it takes it back."""
    yield gpt2
    for module in gpt2.modules:
        assert torch.equal(gpt2.weight(module.name), gpt2.base_weight(module.name)), "a test left the model edited"


@pytest.fixture
def stand(request: pytest.FixtureRequest) -> Iterator[Stand]:
    """Moves a model to ΔW, in the place of all before, until the test is over."""
    if "loaded" in request.fixturenames:
        request.getfixturevalue("loaded")  # first, so that it looks when all are back
    with ExitStack() as stack:
        yield lambda model, shifts: stack.enter_context(model.at(shifts))


@pytest.fixture(scope="session")
def fixed(gpt2: LoadedModel, sentences: list[str], probes: list[Probe]) -> Fixed:
    """What `init` fixes for the tiny GPT-2."""
    return prepare(gpt2, BASIC, text=[" ".join(sentences * 20)], preserve=probes)


@pytest.fixture
def make_bench(loaded: LoadedModel, fixed: Fixed) -> MakeBench:
    """Makes a bench with some settings changed."""

    def make(**changes: Any) -> Bench:
        kind = rule_of(changes.get("editor", BASIC.editor)).settings
        return Bench(loaded, kind(**(msgspec.structs.asdict(BASIC) | changes)), fixed)

    return make


@pytest.fixture
def make_editor(make_bench: MakeBench) -> MakeEditor:
    """Makes an editor on a bench of its own with some settings changed and, it may be, a hypernetwork."""

    def make(networks: NetworkSet | None = None, **changes: Any) -> RidgeEditor:
        return editor_of(make_bench(**changes), networks)

    return make


@pytest.fixture
def random_network(loaded: LoadedModel) -> Callable[..., NetworkSet]:
    """Makes a network set in which every parameter and every moment in use is random and not zero."""

    def make(form: str, *, seed: int = 0, size: float = 0.3) -> NetworkSet:
        modules = loaded.modules
        config = NetworkConfig(
            form="published" if form == "published" else "joint",
            rank=5,
            blocks=2,
            modules=tuple(m.name for m in modules),
            shapes=tuple((m.d_in, m.d_out) for m in modules),
            positions=tuple(m.positions for m in modules),
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            networks = NetworkSet(config).requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        for parameter in networks.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
        for network in networks.networks.values():
            used = len(network.mean) if form == "published" else network.d_in
            network.mean[:used] = torch.randn(used, generator=generator) * 0.2
            network.deviation[:used] = 0.5 + torch.rand(used, generator=generator)
        return networks.eval()

    return make
