"""Every failure that a user can meet, each with the exit code that the command line gives it."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class LifelongEditError(Exception):
    """A failure with one sentence: what was found, what was expected, what to do."""

    exit_code = 1


class UsageError(LifelongEditError):
    """The call itself is wrong: an unknown option value, a step that does not exist."""

    exit_code = 2


class BadInputError(LifelongEditError):
    """A record or file of the input cannot be read; nothing of its batch was applied."""

    exit_code = 3


class StoreError(LifelongEditError):
    """The store is damaged, locked, missing or written by another version."""

    exit_code = 4


class StoreDamagedError(StoreError):
    """What was read does not have the digest that was logged with it."""


class StoreKeyError(StoreError):
    """The store is encrypted, and no key, or a wrong one, is at hand."""


class StoreLockedError(StoreError):
    """Another process is writing to the store."""


class ModelMismatchError(LifelongEditError):
    """The model at hand is not the one that the store was made for."""

    exit_code = 5


class UnknownModelError(LifelongEditError):
    """The model type is in no family of the registry, or a module name does not exist in it."""

    exit_code = 2


class StepRefusedError(LifelongEditError):
    """The gate refused a step; the model and the store stand where they stood."""


class WorldError(LifelongEditError):
    """One of several processes ended before the others, or they came to different results; nothing of it was kept."""


def said(error: BaseException) -> str:
    """What an error of a library says, on one line: it may repeat what a damaged or hostile file holds."""
    return " ".join(str(error).split())


def first_line(error: BaseException) -> str:
    """What an error of a library says first; its type, where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def near(name: str, known: Iterable[str]) -> str:
    """What an error adds where a name is misspelt: those that are near it, if any."""
    found = get_close_matches(name, list(known))
    return f"; near it: {', '.join(found)}" if found else ""
