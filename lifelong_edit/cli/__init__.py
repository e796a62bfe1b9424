"""The command line: one file per group of commands, one `Group` that keeps the rules of output and exit codes."""

from __future__ import annotations

from collections.abc import Sequence

import click

from lifelong_edit.cli.asking import ask, evaluate
from lifelong_edit.cli.branching import branch, rollback, switch, tag
from lifelong_edit.cli.common import Group
from lifelong_edit.cli.comparing import diff
from lifelong_edit.cli.contest import compare
from lifelong_edit.cli.editing import stream
from lifelong_edit.cli.encrypting import keygen, rekey
from lifelong_edit.cli.exporting import apply, export
from lifelong_edit.cli.keeping import backup, compact, fsck, purge, restore
from lifelong_edit.cli.learning import train
from lifelong_edit.cli.looking import facts, log, show, status
from lifelong_edit.cli.planning import plan
from lifelong_edit.cli.processes import Running
from lifelong_edit.cli.reconsolidating import reconsolidate
from lifelong_edit.cli.relocating import relocate
from lifelong_edit.cli.reporting import report
from lifelong_edit.cli.retracting import prove, retract
from lifelong_edit.cli.reviewing import conflicts, dismiss
from lifelong_edit.cli.rules import editors
from lifelong_edit.cli.serving import serve
from lifelong_edit.cli.setup import init
from lifelong_edit.cli.shell import completion
from lifelong_edit.cli.watching import watch
from lifelong_edit.world import World

PROGRAM = "lifelong-edit"


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name=PROGRAM, prog_name=PROGRAM)
@click.option("--debug", is_flag=True, help="On a failure show where it happened (a traceback), not one line.")
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    metavar="N",
    help="Let N processes on this machine share the work of init, stream, retract, reconsolidate, ask, eval, "
    "train, and of the streams of compare. The weights are the same to the last bit. Under torchrun leave it out.",
)
@click.pass_context
def cli(context: click.Context, debug: bool, processes: int | None) -> None:
    """Keep a language model's knowledge up to date: facts in, edited model out, every step logged.

    \b
    Begin here (the bundled model, no download):
      lifelong-edit stream facts/*.jsonl
      lifelong-edit log
      lifelong-edit ask "The capital of France is"
      lifelong-edit rollback 1

    Results go to stdout (tables, or JSON with --json), everything else to stderr.

    \b
    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 bad input, 4 store damaged or locked,
    5 the model is not the store's, 130 interrupted, 143 terminated (SIGTERM).
    """
    context.ensure_object(Running).begin(context.invoked_subcommand, processes, run_beside)


def run_beside(world: World, arguments: Sequence[str]) -> None:
    """What each of the processes runs that `--processes` starts: the same command line, as one of them."""
    cli.main(list(arguments), prog_name=PROGRAM, obj=Running(arguments, world))


for _command in (
    *(plan, init, train, stream, dismiss, retract, prove, reconsolidate, rollback, tag, branch, switch),
    *(status, log, watch, show, facts, conflicts, diff, ask, evaluate, report, compare, export, apply, serve),
    *(fsck, backup, restore, compact, purge, relocate, keygen, rekey, editors, completion),
):
    cli.add_command(_command)


def main() -> None:
    """Run the command line on the arguments of this process."""
    cli.main(prog_name=PROGRAM)


__all__ = ["PROGRAM", "cli", "main"]
