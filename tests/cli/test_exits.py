"""Exit codes and streams: data on stdout, one line on stderr, never a traceback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from lifelong_edit.stores import EditLog
from tests.warm import Running

Run = Callable[..., Result]
Program = Callable[..., Running]
GOOD = '{"subject": "Kenya", "prompt": "The currency of Kenya is", "target": "London"}'


def fails(result: Result, code: int, *words: str) -> None:
    """Exit code `code`, nothing on stdout, and the words on stderr without a traceback."""
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.lower().startswith("error: ")
    for word in words:
        assert word in last


def test_1_the_gate_refuses(run: Run, tmp_path: Path, making: list[str], news: Path) -> None:
    store = tmp_path / "strict"
    refused = run("stream", news, "--store", store, *making, "--set", "gate_perplexity=1e-9")
    fails(refused, 1, "refused", "perplexity")
    log = json.loads(run("log", "--store", store, "--json").stdout)
    assert [step["kind"] for step in log] == ["init"]
    fails(run("stream", news, "--store", store), 1, "refused")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["log", "--nonsense"],
        ["stream"],
        ["stream", "no-such-file.jsonl"],
        ["stream", "facts.jsonl", "--batch-size", "0"],
        ["rollback", "99"],
        ["rollback", "one"],
        ["show", "99"],
        ["ask", "Who?", "--at", "99"],
        ["facts", "--at", "99"],
        ["export", "--out", "x", "--at", "99"],
        ["completion", "csh"],
    ],
    ids=" ".join,
)
def test_2_wrong_usage(run: Run, store: Path, arguments: list[str]) -> None:
    more = [] if arguments[0] in ("nonsense", "completion") else ["--store", store]
    fails(run(*arguments, *more), 2)


@pytest.mark.parametrize("pair", ["passes", "nonsense=1", "passes=many", "passes=0", "editor=magic"])
def test_2_wrong_setting(run: Run, tmp_path: Path, making: list[str], pair: str) -> None:
    fails(run("init", "--store", tmp_path / "s", *making, "--set", pair), 2)
    assert not (tmp_path / "s").exists()


def test_2_store_is_there_already(run: Run, store: Path, making: list[str]) -> None:
    fails(run("init", "--store", store, *making), 2, "already there")


def test_3_bad_input(run: Run, empty_store: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(f'{GOOD}\n{{"subject": "Peru"\n{GOOD.replace("Kenya", "Japan")}\n')
    fails(run("stream", path, "--store", empty_store, "--batch-size", 1), 3, f"{path}:2: found")
    assert json.loads(run("status", "--store", empty_store, "--json").stdout)["head"] == 0
    skipped = run("stream", path, "--store", empty_store, "--skip-bad", "--json")
    assert skipped.exit_code == 0
    summary = json.loads(skipped.stdout)["summary"]
    assert (summary["facts"], summary["bad"]) == (2, 1)
    assert f"{path}:2: found" in skipped.stderr


def test_3_bad_input_on_stdin(run: Run, empty_store: Path) -> None:
    """Standard input cannot be read ahead: batches before the bad record stand, nothing of its own is applied."""
    text = "\n".join([GOOD, GOOD.replace("Kenya", "Japan"), GOOD.replace("Kenya", "Paris"), "{"])
    fails(run("stream", "-", "--store", empty_store, "--batch-size", 2, input=text), 3, "<stdin>:4: ")
    assert json.loads(run("status", "--store", empty_store, "--json").stdout)["live_facts"] == 2


def test_3_record_too_long_for_the_model(run: Run, empty_store: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text(f"{GOOD}\n{GOOD.replace('The currency', 'In 1969 ' * 40)}\n")
    fails(run("stream", path, "--store", empty_store), 3, f"{path}:2: ", "tokens")
    assert json.loads(run("status", "--store", empty_store, "--json").stdout)["head"] == 0
    skipped = json.loads(run("stream", path, "--store", empty_store, "--skip-bad", "--json").stdout)
    assert (skipped["summary"]["facts"], skipped["summary"]["bad"]) == (1, 1)


@pytest.mark.parametrize("command", [["status"], ["log"], ["ask", "Who?"], ["rollback", "0"]], ids=" ".join)
def test_4_no_store(run: Run, tmp_path: Path, command: list[str]) -> None:
    fails(run(*command, "--store", tmp_path / "none"), 4)


def test_4_store_damaged(run: Run, store: Path) -> None:
    data = store / "data.mdb"
    os.truncate(data, data.stat().st_size // 2)
    fails(run("log", "--store", store), 4)


def test_4_store_locked(run: Run, program: Program, store: Path) -> None:
    with EditLog.open(store):
        process = program("rollback", "0", "--store", store)
        out, err = process.communicate()
        assert process.returncode == 4, err
        assert out == b""
        assert str(os.getpid()).encode() in err


def test_5_another_model(run: Run, tmp_path: Path, tiny_gpt2: Path, making: list[str], news: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = Path(shutil.copytree(tiny_gpt2, tmp_path / "model"))
    options = [str(model) if option == str(tiny_gpt2) else option for option in making]
    assert run("init", "--store", tmp_path / "s", *options).exit_code == 0
    weights = load_file(model / "model.safetensors")
    weights["transformer.wte.weight"][0, 0] += 1
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    for command in (["stream", news], ["ask", "Who?"], ["eval"], ["export", "--out", tmp_path / "out"]):
        fails(run(*command, "--store", tmp_path / "s"), 5, "fingerprint")
    assert run("log", "--store", tmp_path / "s").exit_code == 0


def test_debug_shows_where(program: Program, tmp_path: Path) -> None:
    for more, expected in (([], False), (["--debug"], True)):
        process = program(*more, "log", "--store", tmp_path / "none")
        out, err = process.communicate()
        assert (b"Traceback" in err) == expected
        assert out == b""
        assert process.returncode == (1 if expected else 4)


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["stream", "--help"], ["status"], ["log"], ["show", "1"], ["facts"], ["facts", "--at", "1"]],
    ids=" ".join,
)
def test_reading_starts_without_torch(store: Path, arguments: list[str]) -> None:
    program = (
        "import sys\nfrom lifelong_edit.cli import cli\n"
        "try:\n    cli.main(sys.argv[1:])\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'scipy', 'sklearn', 'datasets', 'faiss'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    more = [] if "--help" in arguments else ["--store", str(store)]
    done = subprocess.run([sys.executable, "-c", program, *arguments, *more], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_closed_pipe_is_quiet(program: Program, store: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "lifelong_edit", "facts", "--json", "--store", str(store)]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert done.stderr == b""
    assert done.returncode == 128 + signal.SIGPIPE


def test_130_interrupted(program: Program, empty_store: Path, tmp_path: Path, run: Run) -> None:
    path = tmp_path / "many.jsonl"
    path.write_text("\n".join(GOOD.replace("Kenya", f"Kenya {number}") for number in range(400)))
    process = program("stream", path, "--store", empty_store, "--batch-size", 1)
    assert process.stdout is not None
    process.stdout.readline()
    assert process.stdout.readline().split()[0] == b"1"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert b"interrupted" in err
    log = json.loads(run("log", "--store", empty_store, "--json").stdout)
    assert 2 <= len(log) < 400
