"""A store on a tiny GPT-2, and batches of facts for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.numpy import save_file

from lifelong_edit.editors.malmen.network import NetworkConfig, NetworkSet
from lifelong_edit.editors.ridge.settings import Settings
from lifelong_edit.facts import Fact, Probe, Record
from lifelong_edit.models import load_model
from lifelong_edit.timeline import Timeline
from tests.zoo import Zoo

PLACES = ("Paris", "London", "Vienna", "Warsaw", "Belgrade", "Sydney", "Kenya", "Japan")
SETTINGS = Settings(
    modules=("0-1@subject", "2-3"),
    more_passes=0,
    passes=2,
    rehearse=4,
    preserved=4,
    c0=50.0,
    text_tokens=4000,
    phrasings=1,
    snapshot_every=3,
    micro_batch=8,
)


def _fact(number: int, target: str | None = None) -> Fact:
    name = f"{PLACES[number % 8]} {number}"
    return Fact(
        subject=name,
        prompt=f"The capital of {name} is",
        target=target or PLACES[(number + 3) % 8],
        relation="capital",
        rephrases=(f"{name} has the capital",),
    )


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """A model this small gains nothing from threads, and on a busy machine they wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def fact() -> Callable[..., Fact]:
    """One of a series of facts about different subjects: `fact(number)`, `fact(number, target)`."""
    return _fact


@pytest.fixture(scope="session")
def batch() -> Callable[..., list[Fact]]:
    """`batch(i)`: three facts of the series; those of different numbers have none in common."""
    return lambda number, size=3: [_fact(number * size + i) for i in range(size)]


@pytest.fixture(scope="session")
def placed() -> Callable[..., list[Record]]:
    """`placed(facts, file)`: the facts as records of a file."""

    def place(facts: list[Fact], file: str = "a", start: int = 0) -> list[Record]:
        return [Record(f, f"{file}.jsonl", start + i + 1, file * 32, start + i) for i, f in enumerate(facts)]

    return place


@pytest.fixture(scope="session")
def lenient() -> Callable[..., dict[str, Any]]:
    """A gate that lets everything pass: a model with random weights is no judge of text."""
    return lambda *_: {"judge": "none"}


@pytest.fixture(scope="session")
def start_store(zoo: Zoo, tiny_gpt2: Path, sentences: list[str]) -> Callable[..., Timeline]:
    """Makes a store at a path; further arguments change settings. Guard prompts need ten preserved ones.

    A store without parts of its own is a copy of one that was made before, which is where most of the time goes.
    """

    def make(
        path: Path,
        hypernetwork: Path | None = None,
        preserve: list[Probe] | None = None,
        scorer: Path | None = None,
        encrypt: bool = False,
        **changes: Any,
    ) -> Timeline:
        if preserve is None:
            preserve = [Probe(prompt=s.rsplit(" ", 1)[0], subject=f"none {i}") for i, s in enumerate(sentences)]
        settings, model, text = SETTINGS.replace(**changes), str(tiny_gpt2), [" ".join(sentences * 20)]
        if hypernetwork or scorer or encrypt:
            return Timeline.create(
                path, model=model, settings=settings, hypernetwork=hypernetwork, scorer=scorer, preserve=preserve,
                text=text, encrypt=encrypt,
            )  # fmt: skip

        def plain(to: Path) -> None:
            Timeline.create(to, model=model, settings=settings, preserve=preserve, text=text).close()

        return Timeline.open(zoo.copy("timeline", [model, settings, preserve, text], plain, path))

    return make


@pytest.fixture(scope="session")
def make_network(tiny_gpt2: Path) -> Callable[..., Path]:
    """Makes a folder with an untrained hypernetwork for the modules of SETTINGS, one per seed."""
    modules = load_model(str(tiny_gpt2), modules=list(SETTINGS.modules)).modules
    config = NetworkConfig(
        form="joint", rank=4, blocks=1, modules=tuple(m.name for m in modules),
        shapes=tuple((m.d_in, m.d_out) for m in modules), positions=tuple(m.positions for m in modules),
    )  # fmt: skip

    def make(folder: Path, seed: int = 0) -> Path:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            tensors = NetworkSet(config).tensors()
        folder.mkdir()
        save_file(tensors, folder / "network.safetensors")
        (folder / "config.json").write_bytes(msgspec.json.encode(config))
        return folder

    return make


@pytest.fixture
def timeline(start_store: Callable[..., Timeline], tmp_path: Path) -> Iterator[Timeline]:
    """A new store, closed at the end."""
    with start_store(tmp_path / "store") as made:
        yield made
