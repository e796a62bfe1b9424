"""What every fact and probe has to be, whichever way it comes: from a file, from Python, or from a store.

The types are those that the classes are annotated with, so that a new field is checked as it is declared. Decoding runs
these checks too, so the sound case is the quick one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from operator import attrgetter
from typing import Any

import msgspec

from lifelong_edit.errors import BadInputError, UsageError

NUMBERS_IN_TABLES = (
    "pandas has numbers where a column looks like them, unless it is read with dtype=str, and nan in gaps"
)

_PLAIN = frozenset({str, type(None)})


def text_flaw(text: str, where: str = "a text") -> str | None:
    """What is wrong with a text that JSON or Python may hold and a record must not. where: how messages call it."""
    if "\x00" in text:
        return f"found a NUL character in {where}, expected none; remove it"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return f"found bad UTF-8 or a lone surrogate in {where}, expected Unicode text; save it as UTF-8"
    return None


def require_texts(record: msgspec.Struct) -> None:
    """Check the fields that hold text, or texts. Raises BadInputError, naming the first that is none."""
    fields = _fields(type(record))
    if not _are_plain(fields.texts_of(record), len(fields.required)):
        for name in fields.required:
            text = _text_of(record, name, getattr(record, name))
            if not text or text.isspace():
                raise BadInputError(
                    f"found a {_called(record)} with a blank `{name}`, expected text; fill it in or drop the record"
                )
        for name in fields.optional:
            if (text := getattr(record, name)) is not None:
                _text_of(record, name, text)
    for name in fields.many:
        found = getattr(record, name)
        if type(found) is not tuple or (found and not _are_plain(found, len(found))):
            _require_phrasings(record, name, _sequence_of(record, name, "texts"))


def require_filled(record: msgspec.Struct, name: str) -> None:
    """Raise BadInputError where an optional text is blank: left out it would say that there is none."""
    text = getattr(record, name)
    if text is not None and (not text or text.isspace()):
        raise BadInputError(
            f"found a {_called(record)} with a blank `{name}`, expected text; fill it in or leave the field out"
        )


def _are_plain(texts: tuple[Any, ...], required: int) -> bool:
    """Whether texts are sound, the first ones of them filled in: the quick answer, for thousands are decoded at a time.

    False is no verdict: a closer look says what is wrong, if anything.
    """
    if not _PLAIN.issuperset(map(type, texts)):
        return False
    for text in texts[:required]:
        if text is None or not text or text.isspace():
            return False
    joined = "".join([text for text in texts if text is not None])
    return text_flaw(joined) is None


def require_probes(record: msgspec.Struct, probe: type[msgspec.Struct]) -> None:
    """Check the fields that hold probes, and make probes of mappings. Raises as `require_texts`."""
    for name in _fields(type(record)).probes:
        if getattr(record, name) == ():
            continue
        found = _sequence_of(record, name, "probes")
        if any(type(part) is not probe for part in found):
            made = tuple(_probe_of(record, name, part, probe) for part in found)
            msgspec.structs.force_setattr(record, name, made)


def require_words(what: str, text: object) -> None:
    """Refuse what a step could not say of itself. Raises UsageError unless it is None or sound text."""
    if text is not None and not isinstance(text, str):
        raise UsageError(f"found {shown(text)} as {what}, expected text; write it as text")
    if text is not None and (flaw := text_flaw(text, what)) is not None:
        raise UsageError(flaw)


class _Fields(msgspec.Struct, frozen=True):
    """Names of a record's fields by what they hold."""

    required: tuple[str, ...]
    optional: tuple[str, ...]
    many: tuple[str, ...]
    probes: tuple[str, ...]
    texts_of: Callable[[object], tuple[Any, ...]]
    """The values of those that are required, and then of the optional ones."""


@cache
def _fields(kind: type[msgspec.Struct]) -> _Fields:
    fields = msgspec.structs.fields(kind)
    of_texts = tuple[str, ...]
    required = tuple(field.name for field in fields if field.type is str)
    optional = tuple(field.name for field in fields if field.type == str | None)
    return _Fields(
        required=required,
        optional=optional,
        many=tuple(field.name for field in fields if field.type == of_texts),
        probes=tuple(field.name for field in fields if field.type not in (str, str | None, of_texts)),
        texts_of=attrgetter(*required, *optional),
    )


def _text_of(record: msgspec.Struct, name: str, value: Any) -> str:
    """The text of a field that is not the usual one: other letters than ASCII, a subclass of str, or none at all."""
    if not isinstance(value, str):
        raise BadInputError(
            f"found {shown(value)} as `{name}` of a {_called(record)}, expected text; write it as text, or leave the "
            f"field out ({NUMBERS_IN_TABLES})"
        )
    if (flaw := text_flaw(value, f"the `{name}` of a {_called(record)}")) is not None:
        raise BadInputError(flaw)
    if type(value) is not str:  # no encoder takes a subclass, as NumPy has one
        plain = str.__str__(value)
        msgspec.structs.force_setattr(record, name, plain)
        return plain
    return value


def _sequence_of(record: msgspec.Struct, name: str, of: str) -> tuple[Any, ...]:
    found = getattr(record, name)
    if type(found) is tuple:
        return found
    if not isinstance(found, list | tuple):
        raise BadInputError(
            f"found {shown(found)} as `{name}` of a {_called(record)}, expected a list of {of}; put it into a list"
        )
    msgspec.structs.force_setattr(record, name, tuple(found))
    return tuple(found)


def _require_phrasings(record: msgspec.Struct, name: str, found: tuple[Any, ...]) -> None:
    made = found
    for i, text in enumerate(found):
        if not isinstance(text, str):
            raise BadInputError(
                f"found {shown(text)} in `{name}` of a {_called(record)}, expected texts; write it as text"
            )
        if (flaw := text_flaw(text, f"`{name}` of a {_called(record)}")) is not None:
            raise BadInputError(flaw)
        if not text or text.isspace():
            raise BadInputError(
                f"found a {_called(record)} with a blank text in its `{name}`, expected text; fill it in or drop the "
                "record"
            )
        if type(text) is not str:
            made = (*made[:i], str.__str__(text), *made[i + 1 :])
    if made is not found:
        msgspec.structs.force_setattr(record, name, made)


def _probe_of(record: msgspec.Struct, name: str, value: Any, probe: type[msgspec.Struct]) -> msgspec.Struct:
    if isinstance(value, probe):
        return value
    known = ", ".join(probe.__struct_fields__)
    if not isinstance(value, dict) or not {"prompt"} <= value.keys() <= set(probe.__struct_fields__):
        raise BadInputError(
            f"found {shown(value)} in `{name}` of a {_called(record)}, expected probes, with `prompt` and no other "
            f"fields than {known}; correct it"
        )
    return probe(**value)


def _called(record: msgspec.Struct) -> str:
    return type(record).__name__.lower()


def shown(value: object) -> str:
    """A value as a sentence names it: what it is, and enough of it to find it again."""
    told = repr(value)
    return f"{told[:60]}{'…' if len(told) > 60 else ''} ({type(value).__name__})"
