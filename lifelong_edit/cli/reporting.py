"""`report`: a page on what the model of each store still knows."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import click

from lifelong_edit.cli.common import DEFAULT_STORE, counted, loading_options, opened, say


@click.command()
@click.argument("stores", nargs=-1, type=click.Path(path_type=Path), metavar="STORE…")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default="report.html",
    show_default=True,
    metavar="FILE",
    help="The page.",
)
@click.option(
    "--figures",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Also each figure as SVG, PNG and CSV, and the tables as CSV, into this folder.",
)
@click.option(
    "--evaluate",
    is_flag=True,
    help="First ask every live fact at the head, and keep that in the store; this loads the model.",
)
@loading_options
def report(stores: tuple[Path, ...], out: Path, figures: Path | None, evaluate: bool, device: str | None) -> None:
    """A page on what the model still knows: forgetting curves, the facts that were lost, conflicts, provenance.

    One file that opens offline and loads nothing; of several stores side by side. It shows what `stream` asked after
    each step (its --measure), read from the log: no model is loaded, and a running stream is not disturbed. Without
    STORE the default one, or LIFELONG_STORE.

    \b
    Examples:
      lifelong-edit report
      lifelong-edit report news trial -o both.html --figures figures
    """
    places = stores or (Path(os.environ.get("LIFELONG_STORE", DEFAULT_STORE)),)
    make_report(places, out, figures=figures, evaluate=evaluate, device=device)


def make_report(
    stores: Sequence[Path],
    out: Path,
    *,
    figures: Path | None = None,
    evaluate: bool = False,
    device: str | None = None,
) -> None:
    """What `report` does."""
    from lifelong_edit.eval.reports.data import gather, names_of
    from lifelong_edit.eval.reports.page import page, write_figures, write_page

    with ExitStack() as stack:
        names, found = names_of(stores), []
        for store, name in zip(stores, names, strict=True):
            timeline = stack.enter_context(opened(store, read_only=not evaluate, device=device))
            if evaluate:
                from lifelong_edit.eval.reports.sampling import Sampler

                say(f"asking all facts of {store}")
                timeline.keep_measurement(Sampler(timeline, None)(timeline.head))
            found.append(gather(timeline, name))
    options = [*(["--figures", str(figures)] if figures else []), *(["--evaluate"] if evaluate else [])]
    command = shlex.join(["lifelong-edit", "report", *map(str, stores), *options, "-o", str(out)])
    write_page(page(found, command), out)
    made = f"{out}: {counted(len(found), 'store')}, {out.stat().st_size / 1024:,.0f} KiB"
    if figures is not None:
        made += f"; {counted(len(write_figures(found, figures)), 'file')} in {figures}"
    say(made)
