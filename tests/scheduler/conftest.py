"""A timeline for a tiny GPT-2, and streams for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from lifelong_edit.editors.ridge.settings import Settings
from lifelong_edit.facts import Probe
from lifelong_edit.timeline import Timeline
from tests.zoo import Zoo

# A model with random weights is no judge of text, so its gate lets everything finite pass; and to its keys one prompt
# is much like another.
SETTINGS = Settings(
    more_passes=0,
    passes=1,
    reconsolidation_passes=2,
    rehearse=4,
    preserved=4,
    c0=50.0,
    text_tokens=2000,
    phrasings=1,
    micro_batch=8,
    gate_perplexity=1e9,
    conflict_cosine=0.9999,
)


@pytest.fixture(scope="session")
def _template(zoo: Zoo, tiny_gpt2: Path, sentences: list[str]) -> Path:
    def make(store: Path) -> None:
        preserve = [Probe(s.rsplit(" ", 1)[0]) for s in sentences]
        text = [" ".join(sentences * 10)]
        Timeline.create(store, model=str(tiny_gpt2), settings=SETTINGS, preserve=preserve, text=text).close()

    return zoo.keep("scheduler", [str(tiny_gpt2), SETTINGS, sentences], make)


@pytest.fixture
def new_store(_template: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Makes a store at step 0 under a name."""
    return lambda name: Path(shutil.copytree(_template, tmp_path / name))


@pytest.fixture
def write_stream(tmp_path: Path) -> Callable[[str, Sequence[tuple[int, str]]], str]:
    """Writes (number of a subject, target) pairs as facts to a file; returns its name."""

    def write(name: str, pairs: Sequence[tuple[int, str]]) -> str:
        lines = [
            json.dumps({"subject": f"Vienna {n}", "prompt": f"The capital of Vienna {n} is", "target": target})
            for n, target in pairs
        ]
        path = tmp_path / name
        path.write_text("".join(f"{text}\n" for text in lines))
        return str(path)

    return write
