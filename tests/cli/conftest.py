"""The command line on a store for a tiny GPT-2: a template is made once, each test works on a copy."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from click.testing import CliRunner, Result

from lifelong_edit.stores import EditLog, StepRecord
from tests.warm import Running
from tests.zoo import Zoo

Run = Callable[..., Result]
Ended = tuple[int, str, str]
"""Exit code, stdout and stderr of a process."""
Start = Callable[..., list[Running]]
SECONDS = 200.0
"""How long processes may take that were started together."""

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


# -- several processes


KILLED = """
import os, signal
from {module} import {owner}
true, count = {owner}.{name}, [0]
def killed(*arguments, **named):
    count[0] += 1
    if count[0] == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    return true(*arguments, **named)
{owner}.{name} = killed
"""
"""The process is killed as it calls something for the n-th time."""


def ended(processes: list[Running]) -> list[Ended]:
    """How processes ended, each within SECONDS."""
    found = []
    for process in processes:
        out, err = process.communicate(SECONDS)
        found.append((process.wait(), out.decode(), err.decode()))
    return found


@pytest.fixture
def together(program: Callable[..., Running], monkeypatch: pytest.MonkeyPatch) -> Start:
    """Starts the program in two processes, as torchrun does. befores: by rank, code that runs first there."""

    def start(*arguments: object, befores: dict[int, str] | None = None) -> list[Running]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        told = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        started = []
        for rank in range(2):
            with monkeypatch.context() as patch:
                for name, value in (told | {"RANK": rank, "LOCAL_RANK": rank}).items():
                    patch.setenv(name, str(value))
                started.append(program(*arguments, before=(befores or {}).get(rank, "")))
        return started

    return start


def digests(store: Path) -> list[tuple[str, str, dict[str, str]]]:
    """Kind, weights and parts of each step."""
    with EditLog.open(store, read_only=True) as log:
        return [(step.kind, step.weights_digest, parts_of(step)) for step in log.steps()]


def parts_of(step: StepRecord) -> dict[str, str]:
    """The digests of a step's parts."""
    return {name: part.digest for name, part in getattr(step, "parts", {}).items()}


def last_line(text: str) -> str:
    """The last line of what was said."""
    return text.strip().splitlines()[-1]
