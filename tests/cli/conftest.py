"""The command line on a store for a tiny GPT-2: a template is made once, each test works on a copy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from click.testing import CliRunner, Result

from tests.zoo import Zoo

Run = Callable[..., Result]

# A model with random weights is no judge of text, so its gate lets everything finite pass; and to its keys one prompt
# is much like another.
SETTINGS = {
    "more_passes": 0,
    "text_tokens": 2000,
    "preserved": 4,
    "rehearse": 4,
    "c0": 50,
    "micro_batch": 8,
    "phrasings": 1,
    "passes": 1,
    "reconsolidation_passes": 3,
    "gate_perplexity": 1e9,
    "conflict_cosine": 0.9999,
}


def fact_line(number: int, **changes: Any) -> str:
    """A fact of a series, as a line of JSON."""
    name = f"Vienna {number}"
    record = {
        "subject": name,
        "prompt": f"The capital of {name} is",
        "target": ["Paris", "London", "Warsaw"][number % 3],
        "relation": "capital",
        "rephrases": [f"{name} has the capital", f"The seat of {name} is"],
        "locality": [{"prompt": f"The river of {name} is", "target": "Danube"}],
    }
    return json.dumps(record | changes)


def refused(result: Result, code: int, *words: str) -> None:
    """One line on stderr, with the words in it: nothing had been begun."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line


@pytest.fixture(scope="session")
def run() -> Run:
    """Runs the program in this process: arguments in; exit code, stdout and stderr out."""
    from lifelong_edit.cli import PROGRAM, cli

    def call(*arguments: object, **options: Any) -> Result:
        return CliRunner().invoke(cli, [str(part) for part in arguments], prog_name=PROGRAM, **options)

    return call


@pytest.fixture(scope="session")
def making(tiny_gpt2: Path, sentences: list[str], zoo: Zoo) -> list[str]:
    """The options of `init` for the tiny model."""

    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / "text.txt").write_text(" ".join(sentences * 10), encoding="utf-8")
        (folder / "prompts.txt").write_text("\n".join(s.rsplit(" ", 1)[0] for s in sentences), encoding="utf-8")

    folder = zoo.keep("making", sentences, write)
    options = ["--model", str(tiny_gpt2), "--text", str(folder / "text.txt"), "--preserve", str(folder / "prompts.txt")]
    for name, value in SETTINGS.items():
        options += ["--set", f"{name}={value}"]
    return options


@pytest.fixture(scope="session")
def news(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six facts in a file."""
    path = tmp_path_factory.mktemp("news") / "news.jsonl"
    path.write_text("\n".join(fact_line(number) for number in range(6)) + "\n")
    return path


@pytest.fixture(scope="session")
def _empty_template(zoo: Zoo, run: Run, making: list[str]) -> Path:
    def make(store: Path) -> None:
        result = run("init", "--store", store, *making)
        assert result.exit_code == 0, result.output

    return zoo.keep("empty", making, make)


@pytest.fixture(scope="session")
def _template(zoo: Zoo, run: Run, _empty_template: Path, making: list[str], news: Path) -> Path:
    def make(store: Path) -> None:
        shutil.copytree(_empty_template, store)
        result = run("stream", news, "--store", store, "--batch-size", 2, "--reason", "first")
        assert result.exit_code == 0, result.output

    return zoo.keep("store", [making, news.read_text()], make)


@pytest.fixture
def empty_store(tmp_path: Path, _empty_template: Path) -> Path:
    """A store at step 0."""
    return Path(shutil.copytree(_empty_template, tmp_path / "empty"))


@pytest.fixture
def store(tmp_path: Path, _template: Path) -> Path:
    """A store with three steps of two facts each, the facts of `news`."""
    return Path(shutil.copytree(_template, tmp_path / "store"))


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model fails the test."""

    def load_model(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("lifelong_edit.timeline.model.load_model", load_model)
    monkeypatch.setattr("lifelong_edit.models.load_model", load_model)
