"""What a step found, as far as anything is derived from it: conflicts, what the gate and the guard measured, forecasts.

Each was a mapping in the free `report` of a step of schemas 1 to 4, and is shown as one still.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from typing import Any, Self

import msgspec
import numpy as np


def plain(value: object) -> Any:
    """NumPy scalars as plain numbers, for msgspec; raises TypeError for what a step cannot hold."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a step record cannot hold a {type(value).__name__}")


def as_plain(value: object) -> Any:
    """A value as JSON has it: mappings, lists, numbers, text."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(value, enc_hook=plain), strict=False)


class Figures(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Figures of which some are known by name and type; None: not measured, or not said."""

    further: dict[str, Any] = {}
    """Whatever else was said with them, by a gate of the user's own for instance; nothing is derived from it."""

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Self:
        """From a mapping; what has no name here, or another type, is `further`.

        Raises ValueError where something is missing that has to be there.
        """
        if not isinstance(told, Mapping):
            raise ValueError(f"found {type(told).__name__}, expected a mapping of figures")
        types = _types(cls)
        if told.keys() <= types.keys() and all(value is not None for value in told.values()):  # nearly always
            with contextlib.suppress(msgspec.ValidationError):
                return msgspec.convert(told, cls)
        known: dict[str, Any] = {}
        further: dict[str, Any] = {}
        for name, value in as_plain(told).items():
            try:
                if name not in types or value is None:
                    raise msgspec.ValidationError
                known[name] = msgspec.convert(value, types[name])
            except msgspec.ValidationError:
                further[name] = value
        try:
            return cls(**known, further=further)
        except TypeError as error:
            raise ValueError(f"found {sorted(told)}: {error}") from error

    def told(self) -> dict[str, Any]:
        """As a mapping, as it was told: without what was not."""
        found: dict[str, Any] = as_plain(self)
        further: dict[str, Any] = found.pop("further", {})
        return found | further


@functools.cache
def _types(figures: type[Figures]) -> dict[str, Any]:
    """The types of those that have names."""
    return {field.name: field.type for field in msgspec.structs.fields(figures) if field.name != "further"}


class Met(Figures, frozen=True, kw_only=True):
    """A new fact, the live one that it met, and what became of it: see `policies.Conflict`."""

    kind: str
    new: str
    """Digest of the new fact."""
    old: str
    """Digest of the live fact, or of an earlier one of the same batch."""
    probability: float | None = None
    action: str
    by: str | None = None
    """What decided; early releases did not say."""


class Gate(Figures, frozen=True, kw_only=True):
    """What was measured of a batch before it was committed."""

    asked: int | None = None
    taken: int | None = None
    untaken: tuple[str, ...] | None = None
    """Digests of the facts that the model did not answer."""
    perplexity: float | None = None
    base_perplexity: float | None = None


class Risk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A live fact that a batch puts at risk."""

    fact: str
    probability: float


class Forecast(Figures, frozen=True, kw_only=True):
    """What a batch was expected to make forgotten of the facts that it left in force."""

    by: str | None = None
    live: int | None = None
    forgotten: float | None = None
    """How many of them."""
    share: float | None = None
    at_risk: tuple[Risk, ...] | None = None


class Standing(Figures, frozen=True, kw_only=True):
    """What the guard measured of a state."""

    retention: float | None = None
    asked: int | None = None
    locality: float | None = None
    guards: int | None = None
    perplexity: float | None = None


class Guard(Figures, frozen=True, kw_only=True):
    """What the guard measured before and after a solve over all live facts."""

    before: Standing | None = None
    after: Standing | None = None

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Self:
        """From a mapping of both."""
        known = {name: Standing.of(told[name]) for name in ("before", "after") if name in told}
        return cls(**known, further={name: value for name, value in told.items() if name not in known})

    def told(self) -> dict[str, Any]:
        """As a mapping of both."""
        both = {"before": self.before, "after": self.after}
        return {name: found.told() for name, found in both.items() if found is not None} | self.further


class Drift(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far the stored keys of one module had drifted, of facts whose keys are of an age."""

    module: str
    ages: tuple[int, int] | None
    """In edit steps, first and last; None: of any age."""
    facts: int
    median: float
    p90: float


class Staleness(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far stored keys had drifted at the state of a step: see `lifelong_edit.staleness`."""

    state: int
    live: int
    sampled: int
    drift: tuple[Drift, ...]

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Self:
        """From a mapping. Raises ValueError where it is none of these."""
        return msgspec.convert(as_plain(told), cls)

    def told(self) -> dict[str, Any]:
        """As a mapping."""
        found: dict[str, Any] = as_plain(self)
        return found


class AsBase(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many questions were asked, and how many of them are answered as by the base model."""

    asked: int
    same: int
