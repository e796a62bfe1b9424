"""What every command shares: options, output rules, and errors as one line with an exit code.

stdout is data and nothing else; whatever is said on the way goes to stderr. Nothing here imports torch, so that
commands which only read the log start in a fraction of a second.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click
import msgspec

from lifelong_edit.cli.processes import Running, world_at_hand
from lifelong_edit.cli.stopping import Terminated, terminable
from lifelong_edit.errors import LifelongEditError, UsageError, near
from lifelong_edit.settings import AUTHOR_VARIABLE, KEY_VARIABLE, is_list, settings_of

if TYPE_CHECKING:
    from lifelong_edit.facts import Reader
    from lifelong_edit.timeline import Timeline

T = TypeVar("T", bound=msgspec.Struct)
Command = TypeVar("Command", bound=Callable[..., Any])

DEFAULT_STORE = "lifelong-store"
_MAX_CELL = 60
_MODEL = "lifelong_edit.model"
"""Under which the place of the model stands in the context of a command."""
_HELP, _NARROWEST = 80, 20
"""Columns of help, at most and at least."""
_UNLIMITED = 1_000_000
"""Columns of a table that no terminal shows."""

_store_option = click.option(
    "--store",
    type=click.Path(path_type=Path),
    default=DEFAULT_STORE,
    show_default=True,
    envvar="LIFELONG_STORE",
    show_envvar=True,
    metavar="DIR",
    help="The store to use.",
)


def _use_key_file(context: click.Context, _: click.Parameter, value: str | None) -> None:
    """Name the key file to all that opens a store until the command ends, the processes that it starts included."""
    if value is not None:
        former = os.environ.get(KEY_VARIABLE)
        os.environ[KEY_VARIABLE] = value
        context.call_on_close(lambda: _set_variable(KEY_VARIABLE, former))


def _set_variable(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


_key_file_option = click.option(
    "--key-file",
    envvar=KEY_VARIABLE,
    show_envvar=True,
    metavar="FILE",
    callback=_use_key_file,
    expose_value=False,
    help="The key of an encrypted store, as `keygen` writes it; several, separated as in PATH, are tried in turn.",
)


def store_option(command: Command) -> Command:
    """The store that a command opens, and the key that opens it."""
    return _store_option(_key_file_option(command))


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
at_option = click.option("--at", metavar="STEP", help="As of this step, tag or branch; default: the head.")
reason_option = click.option("--reason", metavar="TEXT", help="Why, for the log.")
author_option = click.option(
    "--author",
    envvar=AUTHOR_VARIABLE,
    show_envvar=True,
    metavar="NAME",
    help="Who makes the step, for the log. Default: the login name.",
)
wait_option = click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for another process that is writing to the store.",
)


def writing_options(command: Command) -> Command:
    """The options of a command that commits a step: why, who, how long to wait, where, and JSON."""
    for option in (json_option, store_option, wait_option, author_option, reason_option):
        command = option(command)
    return command


map_option = click.option(
    "--map",
    "mapping",
    multiple=True,
    metavar="FIELD=NAME,…",
    help="Which fields of the records hold what: prompt=question,target=answer. NAME may be a path (answer.value). "
    "Fields that are named by neither are not used; records that have none of them are read by their own shape.",
)
relations_option = click.option(
    "--relations",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Templates (TOML) by which triples of subject, relation and object become facts.",
)


def reader_of(mapping: Sequence[str], relations: Path | None) -> Reader:
    """How records are read, by `--map` and `--relations`."""
    from lifelong_edit.facts import Reader, mapping_of, read_relations

    if mapping and relations is not None:
        raise UsageError("found --map with --relations, expected one of them; a map names prompt and target itself")
    return Reader(mapping_of(mapping) if mapping else {}, None if relations is None else read_relations(relations))


def device_option_of(cpu: str, otherwise: str = "") -> Callable[[Command], Command]:
    """The option --device. cpu: how the CPU is told of; otherwise: what is said at the end."""
    return click.option(
        "--device",
        metavar="NAME|auto|sharded|FILE",
        help=f"Where the model lives: {cpu}, cuda, cuda:1, mps; auto, or a device map (.json), for one that is too "
        f"large for a single device; sharded, a shard in each of --processes, which stands before the command."
        f"{otherwise}",
    )


device_option = device_option_of("cpu", " Default: as at `init`.")


def _use_model(context: click.Context, _: click.Parameter, value: str | None) -> None:
    """Name to `opened` where the model is loaded from, for the time of the command."""
    context.meta[_MODEL] = value


_model_option = click.option(
    "--model",
    metavar="MODEL",
    callback=_use_model,
    expose_value=False,
    help="Load the store's model from this folder, GGUF file or hub id; `relocate` says so for good.",
)


def loading_options(command: Command) -> Command:
    """Where the model of a store, which a command loads, lies, and where it is to live."""
    return device_option(_model_option(command))


class Group(click.Group):
    """A group whose errors are one line on stderr and design's exit codes, never a traceback (unless --debug)."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """As click does, with help as narrow as COLUMNS says: click itself knows no width below 50."""
        said = os.environ.get("COLUMNS", "")
        if parent is None and said.isdecimal() and 0 < int(said) < _HELP:
            extra.setdefault("terminal_width", max(int(said) - 2, _NARROWEST))
        return super().make_context(info_name, args, parent, **extra)

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run, and exit with 0 done, 1 failure, 2 usage, 3 bad input, 4 store, 5 wrong model, 130 or 143 stopped."""
        run: Any = super().main  # its overloads tell the two modes apart, which a flag handed on cannot
        running = extra.setdefault("obj", Running(extra.get("args") or (args[0] if args else sys.argv[1:])))
        if not standalone_mode:
            found = run(*args, standalone_mode=False, **extra)
            running.end()
            return found
        try:
            # click returns the code of an early exit (--help, --version) and None or a value otherwise.
            with terminable():
                code = run(*args, standalone_mode=False, **extra)
                sys.stdout.flush()
                running.end()
        except BaseException as met:
            error = running.world.meant(met)
            try:
                if _wants_traceback() and not isinstance(
                    error, SystemExit | ClosedPipe | click.ClickException | click.Abort | Terminated
                ):
                    raise
                _exit(error)
            except SystemExit as end:
                running.leave(end.code if isinstance(end.code, int) else 1, f"error: {one_line(str(error))}")
                raise
            except BaseException:
                running.leave(1, f"error: {one_line(str(error))}")
                raise
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a closed pipe becomes an error of ours, because click would end with 1, as a failure."""
        try:
            return super().invoke(ctx)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise ClosedPipe from error
            raise


class ClosedPipe(Exception):
    """Whoever read our output has gone."""


def _wants_traceback() -> bool:
    context = click.get_current_context(silent=True)
    return "--debug" in sys.argv or bool(context and context.find_root().params.get("debug"))


def _exit(error: BaseException) -> NoReturn:
    if isinstance(error, SystemExit):
        raise error
    if isinstance(error, click.Abort | KeyboardInterrupt):
        say("interrupted; what was saved stays, and the rest is as if never begun")
        sys.exit(128 + signal.SIGINT)
    if isinstance(error, Terminated):
        say("terminated; what was saved stays, and the rest is as if never begun")
        sys.exit(128 + signal.SIGTERM)
    if isinstance(error, click.ClickException):
        error.show()
        sys.exit(error.exit_code)
    if isinstance(error, ClosedPipe | BrokenPipeError):
        # The interpreter would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    if isinstance(error, LifelongEditError):
        say(f"error: {one_line(str(error))}")
        sys.exit(error.exit_code)
    if isinstance(error, OSError) and error.strerror:
        where = f" at {one_line(str(error.filename))[:200]}" if error.filename else ""
        say(f"error: found {error.strerror.lower()}{where}, expected to read or write there; see to that and run again")
        sys.exit(1)
    if isinstance(error, Exception):
        say(f"error: {type(error).__name__}: {one_line(str(error))} (--debug shows where)")
        sys.exit(1)
    raise error


def say(message: str) -> None:
    """A line on stderr."""
    with contextlib.suppress(OSError):
        click.echo(message, err=True)


def counted(count: int, noun: str) -> str:
    """A number of things: "1 fact", "2 facts"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def one_line(text: str) -> str:
    """Text on one line, without control characters that a terminal would obey."""
    return "".join(letter if letter.isprintable() else " " for letter in " ".join(text.split()))


def print_json(value: object) -> None:
    """JSON on stdout, two spaces deep."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns under their names: text to the left, numbers to the right; long cells are cut.

    On a terminal a table that is wider wraps within its columns. Elsewhere it is for programs: one line a row, however
    long, and no escape codes.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    terminal = sys.stdout.isatty()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for i, name in enumerate(columns):
        right = bool(rows) and all(isinstance(row[i], int | float | None) for row in rows)
        table.add_column(Text(name), justify="right" if right else "left", no_wrap=not terminal, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell(value)) for value in row))
    # Whatever FORCE_COLOR and the like say: what reads a pipe gets text.
    console = Console(force_terminal=terminal, width=None if terminal else _UNLIMITED, color_system="auto")
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        click.echo(line.rstrip())


def print_row(cells: Sequence[tuple[str, int, object]]) -> None:
    """One row of a table that is printed as it comes: (name, width, value), all to the right."""
    click.echo("  ".join(cell(value, width).rjust(width) for _, width, value in cells))


def print_pairs(pairs: Sequence[tuple[str, object]]) -> None:
    """Names and values, one pair a line."""
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        click.echo(f"{name.ljust(width)}  {cell(value, 200)}")


def cell(value: object, limit: int = _MAX_CELL) -> str:
    """A value as a table shows it: on one line, cut at `limit` characters."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 1000 else f"{value:.0f}"
    text = one_line(str(value))
    return text if len(text) <= limit else text[: limit - 1] + "…"


@contextlib.contextmanager
def opened(
    store: Path,
    *,
    read_only: bool,
    device: str | None = None,
    author: str | None = None,
    wait: float = 5.0,
    model: str | None = None,
) -> Iterator[Timeline]:
    """The timeline of a store, closed in the end; `wait`: seconds to wait for another writer.

    model: where to load it from; by default as --model of the command at hand says, if it has one.
    """
    from lifelong_edit.timeline import Timeline

    context = click.get_current_context(silent=True)
    model = model or (context.meta.get(_MODEL) if context else None)
    told: dict[str, Any] = {"device": device, "model": model, "author": author, "world": world_at_hand()}
    timeline = Timeline.open(store, read_only=read_only, timeout=wait, **told)
    try:
        yield timeline
    finally:
        timeline.close()


def progress_bar(total: int | None, unit: str) -> tuple[Callable[[int], None], Callable[[], None]]:
    """(advance, close) of a bar on stderr; both do nothing where stderr is no terminal."""
    if not sys.stderr.isatty():
        return (lambda count: None), (lambda: None)
    from tqdm import tqdm

    bar = tqdm(total=total, unit=f" {unit}", file=sys.stderr, dynamic_ncols=True, leave=False)

    def advance(count: int) -> None:
        bar.update(count)

    return advance, bar.close


def parse_settings(kind: type[T], option: str, pairs: Sequence[str], **named: object) -> T:
    """A struct of settings from options by name (None: not given) and `name=value` pairs, which win.

    kind: the settings of a rule, `TrainSettings` or `Choosing`. option: what the pairs are called on the command
    line. Raises `UsageError` for a name that does not exist and a value of the wrong kind.
    """
    given: dict[str, object] = {name: value for name, value in named.items() if value is not None}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or name not in field_names(kind):
            names = field_names(kind)
            expected = f"expected NAME=VALUE with one of {', '.join(names)}"
            raise UsageError(f"found {option} {pair!r}, {expected}{near(name, names)}")
        given[name] = split_names(text) if is_list(kind, name) else _value(text)
    return settings_of(kind, given)


def editor_in(pairs: Sequence[str]) -> str | None:
    """The editing rule that `name=value` pairs name, by the last of them; None where none does."""
    named = [text for name, equals, text in (pair.partition("=") for pair in pairs) if equals and name == "editor"]
    return named[-1] if named else None


def field_names(kind: type[msgspec.Struct]) -> tuple[str, ...]:
    """The names of a struct's fields."""
    return kind.__struct_fields__


def split_names(text: str) -> list[str]:
    """Names separated by commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _value(text: str) -> object:
    return None if text.casefold() in ("none", "null") else text
