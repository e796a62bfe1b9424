"""Why a sound record teaches nothing."""

from __future__ import annotations

from enum import Enum


class Skip(Enum):
    """Why a sound record teaches nothing."""

    NOT_ENOUGH_INFO = "FEVER claim labelled NOT ENOUGH INFO"
    NO_TARGET = "zsRE record whose edit target `alt` is blank"
    NOT_IN_FORCE = "fact that was not in force where it was listed"
