"""Facts as a store keeps them: bytes from which the fact is read back under the digest that the log calls it by."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import msgspec

from lifelong_edit.errors import BadInputError, StoreDamagedError, said
from lifelong_edit.facts.dates import span_of
from lifelong_edit.facts.record import Fact, Probe

_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_REQUIRED = ("prompt", "target")
_FACT, _PROBE = Fact(prompt="-", target="-"), Probe("-")


def encode_fact(fact: Fact) -> bytes:
    """The bytes to keep of a fact.

    Raises BadInputError where they would be read back as another fact, or as none: whoever got round the checks of
    `Fact` shall not get into the log.
    """
    data = msgspec.json.encode(fact)
    try:
        reason = f"it is read back as {msgspec.json.decode(data, type=Fact).digest}"
    except (*_UNREADABLE, BadInputError) as error:
        reason = said(error)
    if reason.endswith(fact.digest):
        return data
    raise BadInputError(
        f"found a fact that cannot be kept as {fact.digest} ({reason}), expected one that is read back as it was "
        "written; make it anew from its fields"
    )


def decode_fact(data: bytes, digest: str) -> Fact:
    """The fact that the log calls by a digest, from the bytes that a store keeps of it.

    It has that digest, which is not computed again: `doubt` holds the two together. What an earlier release let in and
    today's checks refuse is read as far as it goes: numbers as text, letters of a text where phrasings belong, as they
    were taught; a date that is none is left out. Raises StoreDamagedError where the bytes are no fact at all.
    """
    fact = _decoded(data, digest)
    vars(fact)["digest"] = digest  # where `cached_property` looks first
    return fact


def doubt(data: bytes, digest: str) -> str | None:
    """Why the fact that a store keeps under a digest is not the one that the log calls so; None where it is.

    Raises StoreDamagedError where the bytes are no fact at all.
    """
    found = _decoded(data, digest).digest
    return None if found == digest else f"what it holds is read as another fact, of digest {found}"


def _decoded(data: bytes, digest: str) -> Fact:
    try:
        return msgspec.json.decode(data, type=Fact)
    except (*_UNREADABLE, BadInputError) as error:
        with contextlib.suppress(*_UNREADABLE):
            given = msgspec.json.decode(data)
            if isinstance(given, dict) and all(given.get(name) for name in _REQUIRED):
                return _of_an_earlier_release(given)
        raise StoreDamagedError(
            f"record facts/{digest} is no fact ({said(error)}); restore the store from a backup"
        ) from None


def _of_an_earlier_release(given: dict[str, Any]) -> Fact:
    fact: Fact = _unchecked(_FACT, given)
    try:
        span_of(fact.date or "2026")
    except BadInputError:
        msgspec.structs.force_setattr(fact, "date", None)
    return fact


def _unchecked(blank: Any, given: dict[str, Any]) -> Any:
    """A record with fields as they were kept; a copy is not checked as what is made or decoded is."""
    made = copy.copy(blank)
    for field in msgspec.structs.fields(type(blank)):
        value = given.get(field.name)
        if value is not None:
            msgspec.structs.force_setattr(made, field.name, _fitted(field.type, value))
    return made


def _fitted(kind: Any, value: Any) -> Any:
    if kind == tuple[str, ...]:
        return tuple(map(str, value)) if isinstance(value, str | list) else ()
    if kind == tuple[Probe, ...]:
        probes = value if isinstance(value, list) else []
        return tuple(_unchecked(_PROBE, probe) for probe in probes if isinstance(probe, dict))
    return str(value)
