"""`serve`: states of a store behind an OpenAI-compatible endpoint, for trying them."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from lifelong_edit.cli.common import loading_options, opened, say, store_option
from lifelong_edit.errors import LifelongEditError, UsageError
from lifelong_edit.serving import BASE, step_named

_NEEDED = ("fastapi", "uvicorn", "openai", "transformers.cli.serving.completion")


@click.command()
@click.option(
    "--at",
    "names",
    multiple=True,
    metavar="STEP",
    help="Serve this step, tag or branch, `head`, or `base`, as a model of that name; may be given several times. "
    "Default: head and base.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@store_option
@loading_options
def serve(names: Sequence[str], port: int, store: Path, device: str | None) -> None:
    """Answer for the store's model at several states, as OpenAI's API does, on this machine alone.

    Each state is a model of the endpoint: `head` follows the steps that are committed meanwhile, without a restart; a
    request keeps the state that it came for, and its answer's `model` says which it was, as `head@12`. Every rule can
    be served, hooks and all. `/v1/chat/completions` and `/v1/completions`, streaming too; one answer at a time. At `/`
    a page asks two states side by side, blind if you like. It needs `pip install 'lifelong-edit[serve]'`.

    \b
    Examples:
      lifelong-edit serve
      lifelong-edit serve --at head --at release-1 --port 9000
    """
    _require_packages()
    with opened(store, read_only=True, device=device) as timeline, _listening(port) as listening:
        for name in names:  # before seconds go into a model
            step_named(timeline, name)
        import uvicorn

        from lifelong_edit.serving.app import build
        from lifelong_edit.serving.states import States

        class Server(uvicorn.Server):
            """Says what it waits for."""

            def handle_exit(self, sig: int, frame: Any) -> None:
                """Called at Ctrl-C, and when the process is told to end."""
                say("ending as soon as the answers under way are through")
                super().handle_exit(sig, frame)

        say(f"loading {timeline.source}")
        states = States(timeline, names or ("head", BASE))
        server = Server(uvicorn.Config(build(states), log_level="warning"))
        listening.listen()  # whoever reads the address finds somebody there
        place = f"http://127.0.0.1:{listening.getsockname()[1]}"
        click.echo(place)
        say(f"{' and '.join(states.names)} at {place}/v1; a page to ask two of them at {place}/; Ctrl-C ends it")
        server.run(sockets=[listening])


def _listening(port: int) -> socket.socket:
    """A socket at a port of this machine. Raises UsageError where the port is taken, or not to be had."""
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(("127.0.0.1", port))
    except OSError as error:
        found.close()
        raise UsageError(
            f"found port {port} taken or forbidden ({error.strerror}), expected a free one; name another with --port, "
            "or 0 for any"
        ) from None
    return found


def _require_packages() -> None:
    """Raise LifelongEditError where something is missing that the server is made of."""
    for name in _NEEDED:
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise LifelongEditError(
                f"`serve` cannot run without {name}; install it with `pip install 'lifelong-edit[serve]'`"
            )
