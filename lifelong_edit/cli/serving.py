"""`serve`: states of a store behind an OpenAI-compatible endpoint, for trying them."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import click

from lifelong_edit.cli.common import loading_options, opened, say, store_option
from lifelong_edit.errors import LifelongEditError

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
    import uvicorn

    from lifelong_edit.serving.app import build
    from lifelong_edit.serving.states import BASE, States

    with opened(store, read_only=True, device=device) as timeline:
        say(f"loading {timeline.source}")
        states = States(timeline, names or ("head", BASE))
        server = uvicorn.Server(uvicorn.Config(build(states), host="127.0.0.1", port=port, log_level="warning"))
        with server.config.bind_socket() as listening:
            listening.listen()  # whoever reads the address finds somebody there
            place = f"http://127.0.0.1:{listening.getsockname()[1]}"
            click.echo(place)
            say(f"{' and '.join(states.names)} at {place}/v1; a page to ask two of them at {place}/; Ctrl-C ends it")
            server.run(sockets=[listening])


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
