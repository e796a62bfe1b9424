"""Commands and Python blocks run in this process as a process of their own would run them, and nothing left behind.

What a shell does beyond splitting words and expanding `*` and `?` is left to a shell: `plain_words` gives None.
What a process lets go of only as it ends is left to a process: `leaves_open`, and an error where something stays open.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import glob
import io
import logging
import os
import random
import re
import signal
import sys
import traceback
import types
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import torch
from click.testing import CliRunner

from lifelong_edit.cli import PROGRAM, cli

LIMIT = 600
"""Seconds that one command may take."""
_PIECE = re.compile(
    r"""'(?P<single>[^']*)' | "(?P<double>[^"$`\\!]*)" | (?P<pattern>[*?]) | (?P<plain>[\w./:,@%+=^-]+)
    | (?P<tilde>(?<=\S)~) | (?P<space>\s+)""",
    re.VERBOSE,
)


def plain_words(line: str) -> list[str] | None:
    """The words of a command that needs no shell; None where there is anything that only a shell understands.

    Words without quotes are expanded as paths in the working folder, as bash does: sorted, or as they stand where
    nothing matches. Pipes, redirections, variables, substitutions, escapes and assignments give None.
    """
    words: list[tuple[str, str]] = []  # the word, and the pattern of paths that it is
    joined, at = False, 0
    while at < len(line):
        piece = _PIECE.match(line, at)
        if piece is None:
            return None
        at, kind = piece.end(), piece.lastgroup
        if kind == "space":
            joined = False
            continue
        text = piece[kind or 0]
        if not joined:
            words.append(("", ""))
        joined = True
        word, pattern = words[-1]
        words[-1] = (word + text, pattern + (text if kind == "pattern" else glob.escape(text)))
    if not words or "=" in words[0][0]:
        return None
    return [name for word, pattern in words for name in _paths(pattern) or [word]]


def _paths(pattern: str) -> list[str]:
    return sorted(glob.glob(pattern)) if glob.has_magic(pattern) else []  # noqa: PTH207 - Path would drop a "./"


def leaves_open(code: str) -> bool:
    """Whether a program opens a store without `with`, to close it by ending."""
    tree = ast.parse(code)
    held = {id(item.context_expr) for node in ast.walk(tree) if isinstance(node, ast.With) for item in node.items}
    opens = {"Timeline.create", "Timeline.open", "EditLog.create", "EditLog.open"}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return any(ast.unparse(call.func) in opens and id(call) not in held for call in calls)


def run_program(arguments: list[str], folder: Path) -> tuple[int, str]:
    """Exit status and output of `lifelong-edit` with these arguments, run in a folder."""
    with as_a_process(folder, [PROGRAM, *arguments]):
        result = CliRunner().invoke(cli, arguments, prog_name=PROGRAM)
        trace = "".join(traceback.format_exception(result.exception)) if result.exception else ""
        return result.exit_code, result.output + trace


def run_code(code: str, folder: Path) -> tuple[int, str]:
    """Exit status and output of a Python program, run in a folder: 1 where an exception ends it."""
    module, printed = types.ModuleType("__main__"), io.StringIO()
    with as_a_process(folder, ["-c"]), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        former, sys.modules["__main__"] = sys.modules["__main__"], module
        try:
            exec(compile(code, "<block>", "exec"), module.__dict__)
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:  # what ends a process with a traceback
            traceback.print_exc(file=printed)
            status = 1
        finally:
            sys.modules["__main__"] = former
    return status, printed.getvalue()


@contextlib.contextmanager
def as_a_process(folder: Path, arguments: list[str]) -> Iterator[None]:
    """What a new process has: its folder, arguments and environment. Afterwards everything is as it was before.

    AssertionError where a file of the folder is still open, since a process would have closed it.
    """
    with restored(), working_in(folder), warnings.catch_warnings(), limited():
        warnings.simplefilter("default")
        os.environ.pop("LIFELONG_STORE", None)
        os.environ["HF_HUB_OFFLINE"] = "1"
        sys.argv = arguments
        yield
    if open_files(folder):
        gc.collect()  # what only a cycle keeps
    left = open_files(folder)
    assert not left, f"{arguments} leaves open {left}: such a block has to run in a process of its own"


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """Puts back what commands change for a whole process."""
    environment, argv, path = dict(os.environ), sys.argv, list(sys.path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)}
    root = logging.getLogger()
    levels = {name: logger.level for name, logger in _loggers()}
    own = {name: list(logger.handlers) for name, logger in _loggers()}
    back: list[Callable[[], object]] = [
        partial(torch.set_rng_state, torch.get_rng_state()),
        partial(np.random.set_state, np.random.get_state()),
        partial(random.setstate, random.getstate()),
        partial(torch.set_num_threads, torch.get_num_threads()),
        partial(torch.set_default_dtype, torch.get_default_dtype()),
        partial(torch.set_grad_enabled, torch.is_grad_enabled()),
        partial(torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled()),
    ]
    try:
        with matplotlib.rc_context():
            yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        sys.argv, sys.path[:] = argv, path
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for name, logger in _loggers():
            logger.setLevel(levels.get(name, logger.level))
            logger.handlers[:] = own.get(name, [] if logger is root else logger.handlers)
        for put in back:
            put()


def _loggers() -> list[tuple[str, logging.Logger]]:
    found = [(name, logger) for name, logger in logging.root.manager.loggerDict.items()]
    return [("", logging.getLogger()), *((n, logger) for n, logger in found if isinstance(logger, logging.Logger))]


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """The folder as working folder, for a while."""
    former = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(former)


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Ends by TimeoutError what takes longer than LIMIT."""

    def stop(number: int, frame: object) -> None:
        raise TimeoutError(f"took longer than {LIMIT} seconds")

    former = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def open_files(folder: Path) -> list[str]:
    """Files under the folder that this process holds open, where the system says so (Linux)."""
    found = []
    for file in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError):
            found.append(str(file.readlink()))
    return [name for name in found if Path(name).is_relative_to(folder.resolve())]
