"""Several processes for one command: started by torchrun, or by `--processes`; process 0 is the one that speaks."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from lifelong_edit.errors import UsageError
from lifelong_edit.world import ALONE, World

if TYPE_CHECKING:
    from lifelong_edit.world.starting import Started

SHARED = ("init", "stream", "retract", "reconsolidate", "ask", "eval", "train")
"""The commands that several processes run together. Of the others process 0 alone does all."""
_HELP = {"--help", "-h"}


class Running:
    """A command that runs, in one process or several."""

    def __init__(self, arguments: Sequence[str], world: World = ALONE) -> None:
        """arguments: of the command line. world: where this process was started as one of several by another."""
        self.arguments, self.world = list(arguments), world
        self._started: Started | None = None

    def begin(self, command: str | None, processes: int | None, work: Callable[[World, Sequence[str]], None]) -> None:
        """Come together with the other processes, before a command runs.

        processes: how many the command line asks for. work: what those run that are started for it. Raises click's Exit
        where this process has nothing to do, and UsageError where the processes were started already.
        """
        from lifelong_edit.world.starting import Started, forget, is_told, join, silenced

        told, leads = is_told(os.environ), os.environ.get("RANK", "0") == "0"
        if told and processes is not None:
            raise UsageError("found --processes in a process that was started as one of several, expected one of both")
        if self.world is not ALONE:
            return
        if command not in SHARED or _HELP & set(self.arguments):
            if told and not leads:
                raise click.exceptions.Exit(0)
            if told:
                forget()
        elif told:
            self.world = join(2 if leads else silenced())
        elif processes is not None and processes > 1:
            self._started = Started(processes, work, self.arguments)
            self.world = self._started.world

    def end(self) -> None:
        """All have come to the end of the command."""
        self.world.close()
        if self._started is not None:
            self._started.end()

    def leave(self, code: int, sentence: str) -> None:
        """The command ends here before its time, with an exit code, and the user was told."""
        self.world.leave(code, sentence)
        if self._started is not None:
            self._started.end()


def world_at_hand() -> World:
    """The world of the command that is running."""
    context = click.get_current_context(silent=True)
    running = None if context is None else context.find_object(Running)
    return ALONE if running is None else running.world


def processes_asked() -> int | None:
    """How many processes the command line asks for; None where it says nothing of it."""
    found: int | None = click.get_current_context().find_root().params.get("processes")
    return found
