"""What runs the pages: it notices what fails, and takes in this process only what a process of its own would do."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from pathlib import Path

import pytest
import torch

from tests.docs import inside
from tests.docs.pages import Reader, blocks

LOG = "lifelong-edit log"


def page(folder: Path, text: str) -> Path:
    (folder / "page.md").write_text(text)
    return folder / "page.md"


def test_a_failing_command_is_noticed(tmp_path: Path) -> None:
    (block,) = blocks(page(tmp_path, "```console\n$ true\n$ ls \\\n  nowhere\n```\n"))
    assert block.commands == ["true", "ls nowhere"]
    with pytest.raises(AssertionError, match=r"page.md:1: 'ls nowhere' gave 2, not 0"):
        Reader(tmp_path).follow(block)


@pytest.mark.parametrize("outside", [[], ["something before"]], ids=["outside", "inside"])
def test_a_failing_program_is_noticed(tmp_path: Path, outside: list[str]) -> None:
    """Both as a process of its own and in this one, with the program's own exit codes."""
    for info, status, good in (("console", 4, False), ("console exit=4", 4, True), ("console exit=3", 4, False)):
        document = page(tmp_path, f"```{info}\n$ {LOG}\n```\n")
        if good:
            Reader(tmp_path, [*outside]).read(document)
        else:
            with pytest.raises(AssertionError, match=f"'{LOG}' gave {status}, not .*\n.*error: "):
                Reader(tmp_path, [*outside]).read(document)


@pytest.mark.parametrize("outside", [[], ["something before"]], ids=["outside", "inside"])
@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("assert 1 == 2", 1),
        ("import sys; sys.exit(3)", 3),
        ("raise SystemExit('no')", 1),
        ("raise SystemExit", 0),
        ("raise KeyboardInterrupt", 1),
    ],
)
def test_a_failing_block_is_noticed(tmp_path: Path, code: str, status: int, outside: list[str]) -> None:
    if code.endswith("KeyboardInterrupt") and not outside:
        status = -signal.SIGINT
    assert Reader(tmp_path, [*outside]).run_python(code)[0] == status


def test_the_first_command_is_a_process(tmp_path: Path) -> None:
    """And what follows is none, unless it needs a shell, or ends to close its store."""
    opening = "from lifelong_edit import Timeline\ntry:\n    Timeline.open('none')\nexcept Exception:\n    pass\n"
    text = f"```console exit=4\n$ true\n$ {LOG} --store a\n```\n```console exit=4\n$ {LOG} --store b\n```\n"
    text += f"```console exit=4\n$ {LOG} 2> errors\n```\n```python\nx = 1\n```\n```python\n{opening}```\n"
    reader = Reader(tmp_path)
    reader.read(page(tmp_path, text))
    assert reader.outside == [f"{LOG} --store a", f"{LOG} 2> errors", opening]


def test_words_are_the_shell_s(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", ".c.jsonl", "a b.txt"):
        (tmp_path / name).touch()
    lines = [
        "x *.jsonl '*.jsonl' \"*.jsonl\"",
        "x no*thing ?.jsonl a?b.txt",
        "x --set a=1 --where source~circular 'it is' \"it's\" a'b'\"c\"",
        "x '' a",
    ]
    for line in lines:
        command = f'for word in {line}; do echo "$word"; done'
        status, output = Reader(tmp_path).run_command(command)
        assert status == 0
        with inside.working_in(tmp_path):
            words = inside.plain_words(line)
        assert words == output.split("\n")[:-1], line


@pytest.mark.parametrize(
    "line",
    ["a | b", "a > b", "a < b", "a && b", "a; b", "a $b", 'a "$b"', "a `b`", "a $(b)", "a \\b", "a {b,c}", "a [bc]",
     "a ~/b", "a=b c", "a 'b", "a #b", "a !b", "a &", ""],
)  # fmt: skip
def test_what_needs_a_shell_is_left_to_it(line: str) -> None:
    assert inside.plain_words(line) is None


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    code = """
import logging, os, random, sys, warnings, numpy, torch
os.chdir("/"); os.environ["LIFELONG_STORE"] = "x"; sys.argv[0] = "y"; sys.path.insert(0, "z")
torch.set_num_threads(1 + torch.get_num_threads()); torch.manual_seed(5); torch.set_grad_enabled(False)
torch.set_default_dtype(torch.float64); numpy.random.seed(5); random.seed(5); warnings.simplefilter("ignore")
logging.getLogger().addHandler(logging.NullHandler()); logging.getLogger("lifelong_edit").setLevel(7)
"""
    before, handlers = state(), inside.logging.getLogger().handlers[:]
    assert inside.run_code(code, tmp_path) == (0, "")
    assert state() == before
    assert inside.logging.getLogger().handlers == handlers


def state() -> list[object]:
    """What a command may have changed in this process."""
    random = [inside.random.getstate()[1][:5], inside.np.random.get_state()[1][:5].tolist()]
    kind = [torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype(), torch.initial_seed()]
    level = inside.logging.getLogger("lifelong_edit").level
    return [dict(os.environ), list(sys.argv), list(sys.path), Path.cwd(), warnings.filters[:], *random, *kind, level]


def test_what_stays_open_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AssertionError, match=r"leaves open .*file"):
        inside.run_code("import os; os.open('file', os.O_RDONLY)", tmp_path)
    for number in (int(file.name) for file in Path("/proc/self/fd").glob("*")):
        if inside.open_files(tmp_path) and Path(f"/proc/self/fd/{number}").resolve() == tmp_path / "file":
            os.close(number)
    assert not inside.open_files(tmp_path)


def test_what_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inside, "LIMIT", 0.05)
    status, output = inside.run_code("import time; time.sleep(60)", tmp_path)
    assert status == 1 and "TimeoutError" in output
