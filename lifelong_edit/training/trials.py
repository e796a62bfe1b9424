"""What a search for settings has tried: one arm of one trial, and the file of all of them, from which it goes on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from lifelong_edit.atomic import write_bytes_atomic
from lifelong_edit.editors.tries import Number
from lifelong_edit.errors import BadInputError, UsageError

TRIALS = "trials.json"
Arm = Literal["stream", "reconsolidation"]


class Trial(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One arm of one trial. changes: settings that differ from the start. perplexity: ratio to the base model's."""

    arm: Arm
    check: bool
    changes: dict[str, Number]
    efficacy: float | None = None
    generality: float | None = None
    locality: float | None = None
    perplexity: float | None = None
    score: float
    seconds: float
    refused: str | None = None

    @property
    def figures(self) -> str:
        """Its figures, or why there are none, on a line."""
        if self.refused is not None:
            return f"refused: {self.refused}"
        parts = (
            ("ES", self.efficacy),
            ("GS", self.generality),
            ("LS", self.locality),
            ("perplexity ×", self.perplexity),
        )
        shown = "  ".join(f"{name} {'-' if value is None else f'{value:.3f}'}" for name, value in parts)
        return f"{shown}  score {self.score:.3f}"


class Trials(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The file of a search: what it belongs to, and what has been tried."""

    identity: str
    trials: list[Trial] = msgspec.field(default_factory=list)


def finite(value: float) -> float | None:
    """A figure, or None for one that could not be taken."""
    return value if math.isfinite(value) else None


def told(changes: Mapping[str, Number]) -> str:
    """Changes on a line."""
    return " ".join(f"{name}={value:g}" for name, value in changes.items()) or "start"


def write_json(path: Path, content: object) -> None:
    """A file of a search, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomic(path, msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n")


def read_trials(path: Path, identity: str) -> Trials:
    """What was tried; nothing where there is no file.

    Raises BadInputError for a file that is none of trials, UsageError for that of a search of another identity.
    """
    if not path.is_file():
        return Trials(identity=identity)
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Trials)
    except msgspec.MsgspecError as error:
        raise BadInputError(f"{path} is no file of trials ({error}); remove it or choose another --out") from error
    if found.identity != identity:
        raise UsageError(
            f"{path} belongs to another search (other model, facts, text or settings); expected the same ones to go on "
            "from; choose another --out or remove the file"
        )
    return found
