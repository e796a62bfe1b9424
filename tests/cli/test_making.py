"""A new store: what stands against it is found before it costs anything, and what takes long is said."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from tests.cli.conftest import refused

Run = Callable[..., Result]
GOOD = '{"subject": "Kenya", "prompt": "The currency of Kenya is", "target": "London"}'
PHASES = ("loading ", "measuring the text", "asking the preserved prompts (8)")


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def network_for(folder: Path, *modules: str) -> Path:
    """A folder with an untrained hypernetwork for modules of the tiny model."""
    import msgspec
    from safetensors.numpy import save_file

    from lifelong_edit.editors.malmen.network import NetworkConfig, NetworkSet

    config = NetworkConfig(form="joint", rank=4, blocks=1, modules=modules, shapes=((128, 32),) * len(modules))
    folder.mkdir()
    save_file(NetworkSet(config).tensors(), folder / "network.safetensors")
    (folder / "config.json").write_bytes(msgspec.json.encode(config))
    return folder


def test_a_store_takes_the_solve_of_its_network(run: Run, tmp_path: Path, making: list[str]) -> None:
    """And of its other settings nothing; what is set by hand wins, and another editor takes nothing at all."""
    import msgspec

    from lifelong_edit.cli.setup import chosen_settings

    names = [f"transformer.h.{i}.mlp.c_proj" for i in (2, 3)]
    folder = network_for(tmp_path / "network", *names)
    config = msgspec.json.decode((folder / "config.json").read_bytes())
    config["settings"] = {"passes": 1, "kappa": 0.5, "preserved": 7, "snapshot_every": 3, "seed": 9}
    (folder / "config.json").write_bytes(msgspec.json.encode(config))
    options = dict.fromkeys(("model", "editor", "modules", "dtype", "seed"), None)
    given = {**options, "hypernetwork": folder, "pairs": ("preserved=5",)}
    settings = chosen_settings(None, given)
    assert (settings.passes, settings.kappa, settings.preserved) == (1, 0.5, 5)
    assert (settings.snapshot_every, settings.seed) == (10, 0)
    plain = chosen_settings(None, {**given, "editor": "gradient"})
    assert (plain.passes, plain.kappa, plain.preserved) == (3, 2.0, 5)
    store = tmp_path / "store"
    run("init", "--store", store, *making, "--hypernetwork", folder)
    assert json.loads(run("status", "--store", store, "--json").stdout)["head"] == 0


OPTIONS: dict[str, tuple[list[str], int, str]] = {
    "module that is not there": (["--modules", "transformer.h.2.mlp.nothing"], 2, "no module"),
    "layer that is not there": (["--modules", "2-9"], 2, "layers 0 to 3"),
    "rule without its network": (["--editor", "malmen"], 2, "--hypernetwork"),
    "unknown conflict policy": (["--set", "conflict_policy=magic"], 2, "conflict_policy"),
    "unknown device": (["--device", "abacus"], 2, "abacus"),
    "code of others, unread": (["--trust-remote-code"], 2, "--revision"),
    "no such model": (["--model", "./nowhere"], 2, "nowhere"),
    "letting go of everything": (["--set", "reconsolidation_decay=1"], 2, "reconsolidation_decay"),
    "a gain that nothing has": (["--set", "reconsolidation_gain=2"], 2, "reconsolidation_gain"),
}


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_refused_before_the_model_is_loaded(run: Run, tmp_path: Path, making: list[str], name: str) -> None:
    options, code, word = OPTIONS[name]
    refused(run("init", "--store", tmp_path / "s", *making, *options), code, word)
    news = write(tmp_path / "news.jsonl", GOOD)
    refused(run("stream", news, "--store", tmp_path / "s", *making, *options), code, word)
    assert not (tmp_path / "s").exists()


FILES: dict[str, tuple[str, str | bytes, str]] = {
    "bad record": ("p.jsonl", '{"prompt": "Gold is"}\n{', "p.jsonl:2"),
    "prompt longer than the model takes": ("p.txt", "In 1969 " * 60, "preserved prompt"),
    "answer longer than the model takes": ("p.jsonl", json.dumps({"prompt": "A", "target": "b " * 90}), "tokens"),
    "no prompt in the file": ("p.jsonl", "\n", "no prompt"),
    "text that is not UTF-8": ("t.txt", b"prose \xff", "not UTF-8"),
    "text without a word": ("t.txt", " \n\n", "without any word"),
}


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("name", FILES)
def test_files_are_refused_before_the_model_is_loaded(run: Run, tmp_path: Path, tiny_gpt2: Path, name: str) -> None:
    file, content, word = FILES[name]
    option = "--text" if file.startswith("t") else "--preserve"
    path = write(tmp_path / file, content)
    refused(run("init", "--store", tmp_path / "s", "--model", tiny_gpt2, option, path), 3, word)


@pytest.mark.usefixtures("no_model")
def test_hypernetworks_are_refused_before_the_model_is_loaded(run: Run, tmp_path: Path, making: list[str]) -> None:
    (tmp_path / "empty").mkdir()
    command = ["init", "--store", tmp_path / "s", *making, "--hypernetwork"]
    refused(run(*command, tmp_path / "empty"), 3, "no readable hypernetwork")
    other = network_for(tmp_path / "other", "transformer.h.0.mlp.c_proj")
    refused(run(*command, other, "--modules", "2-3"), 5, "was trained for modules")
    refused(run(*command, other, "--modules", "0@subject"), 5, "was trained for modules")
    reached = run(*command, other)  # the control: without --modules the store takes those of the network
    assert "a model was loaded" in reached.stderr
    fitting = network_for(tmp_path / "fitting", "transformer.h.2.mlp.c_proj", "transformer.h.3.mlp.c_proj")
    reached = run(*command, fitting)
    assert isinstance(reached.exception, SystemExit)
    assert "a model was loaded" in reached.stderr  # the control: nothing else stood against it


@pytest.mark.usefixtures("no_model")
def test_places_are_refused_before_the_model_is_loaded(
    run: Run, tmp_path: Path, making: list[str], store: Path
) -> None:
    refused(run("init", "--store", store, *making), 2, "already there")
    file = write(tmp_path / "file", "")
    for place in (file / "store", tmp_path / ("x" * 300)):
        refused(run("init", "--store", place, *making), 4, "cannot make a store at")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "store"]


@pytest.mark.usefixtures("no_model")
def test_facts_are_refused_before_a_store_is_made(run: Run, tmp_path: Path, making: list[str]) -> None:
    command = ["--store", tmp_path / "s", *making]
    bad = write(tmp_path / "bad.jsonl", f"{GOOD}\n{{")
    refused(run("stream", bad, *command), 3, "bad.jsonl:2")
    refused(run("stream", tmp_path, *command), 2, "found the folder")
    refused(run("stream", "-", tmp_path, *command, input=GOOD), 2, "found the folder")
    refused(run("stream", "-", *command, input="{"), 3, "<stdin>:1")
    assert not (tmp_path / "s").exists()


@pytest.mark.usefixtures("no_model")
def test_training_facts_are_counted_before_the_model_is_loaded(run: Run, tmp_path: Path, tiny_gpt2: Path) -> None:
    facts = write(tmp_path / "facts.jsonl", "\n".join(GOOD.replace("Kenya", f"Kenya {n}") for n in range(40)))
    command = ["train", "--model", tiny_gpt2, "--data", facts, "--out", tmp_path / "out"]
    refused(run(*command, "--train", "batch_size=20"), 3, "give more facts")
    assert not (tmp_path / "out").exists()
    assert "a model was loaded" in run(*command, "--train", "batch_size=4").stderr


def phases_of(result: Result, opening: str) -> None:
    """The lines on stderr begin with the opening, and with what is done after it."""
    assert result.exit_code == 0, result.output
    lines = [line.strip() for line in result.stderr.splitlines()]
    assert lines[0].startswith(opening)
    for line, phase in zip(lines[1:4], PHASES, strict=True):
        assert line.startswith(phase)


def test_making_says_what_it_does(run: Run, tmp_path: Path, making: list[str], news: Path) -> None:
    made = run("init", "--store", tmp_path / "one", *making, "--json")
    phases_of(made, f"making {tmp_path / 'one'} for ")
    found = json.loads(made.stdout)
    assert found["preserved"] == 8
    log = json.loads(run("log", "--store", tmp_path / "one", "--json").stdout)
    assert log[0]["perplexity"] == found["base_perplexity"] > 1
    shown = run("status", "--store", tmp_path / "one").stdout
    assert f"({found['bytes'] / 2**20:.1f} MiB)" in shown
    assert re.search(r"^settings +.*\bc0=50", shown, re.MULTILINE)
    streamed = run("stream", news, "--store", tmp_path / "two", *making, "--json")
    phases_of(streamed, f"there is no store at {tmp_path / 'two'}: making one for ")
    again = run("stream", news, "--store", tmp_path / "two", "--json")
    assert "making" not in again.stderr


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("content", ["", "\n \n", "[]"])
def test_a_week_without_news(run: Run, tmp_path: Path, making: list[str], content: str) -> None:
    empty = write(tmp_path / "empty.jsonl", content)
    for source, more in ((empty, {}), ("-", {"input": content})):
        result = run("stream", source, "--store", tmp_path / "s", *making, **more)
        assert (result.exit_code, result.stdout) == (0, "")
        assert result.stderr == f"found no facts to edit in {source}: nothing was done, and no store was made\n"
    found = run("stream", empty, "--store", tmp_path / "s", *making, "--json")
    assert json.loads(found.stdout)["summary"]["records"] == 0
    assert not (tmp_path / "s").exists()


@pytest.mark.usefixtures("no_model")
def test_a_week_without_news_for_a_store(run: Run, store: Path, tmp_path: Path) -> None:
    result = run("stream", write(tmp_path / "empty.jsonl", ""), "--store", store)
    assert result.exit_code == 0
    assert result.stderr.endswith("empty.jsonl: nothing was done, and the head is step 3\n")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.usefixtures("no_model")
def test_a_week_of_bad_news(run: Run, tmp_path: Path, making: list[str]) -> None:
    result = run("stream", write(tmp_path / "bad.jsonl", "17\n"), "--store", tmp_path / "s", *making, "--skip-bad")
    assert result.exit_code == 0
    assert "found no facts" in result.stderr
    assert "1 bad record left out:" in result.stderr
    assert "bad.jsonl:1: found a number" in result.stderr
    assert not (tmp_path / "s").exists()


def test_standard_input_is_read_once(run: Run, tmp_path: Path, making: list[str]) -> None:
    lines = "\n".join(GOOD.replace("Kenya", f"Kenya {n}") for n in range(3))
    found = run("stream", "-", "--store", tmp_path / "s", *making, "--json", input=lines)
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["summary"]["facts"] == 3


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt_is_refused(run: Run, store: Path, prompt: str) -> None:
    refused(run("ask", prompt, "--store", store), 2, "empty prompt")
