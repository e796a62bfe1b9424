"""From bytes to JSON objects, one at a time, whatever the bytes are.

Lines and arrays are both read in bounded memory. A defect inside one record does not stop the reading: it is
yielded in the record's place as a `BadInputError` without file and line, which the caller adds.
"""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Iterator
from typing import Protocol

from lifelong_edit.errors import BadInputError
from lifelong_edit.facts.checks import text_flaw

Value = dict[str, object]
Element = tuple[int, Value | BadInputError]
"""(1-based line, the object that starts there or what is wrong with it)."""


class ByteStream(Protocol):
    """What decoding needs of a binary stream."""

    def read(self, count: int, /) -> bytes:
        """Up to `count` bytes."""
        ...

    def readline(self, limit: int, /) -> bytes:
        """Up to the end of the line, or `limit` bytes."""
        ...

    def seek(self, offset: int, /) -> int:
        """Go to a place from the beginning."""
        ...


MAX_RECORD_BYTES = 1 << 20
MAX_DEPTH = 16
HEAD_BYTES = 4096
"""By so many of its first bytes it is told what a stream holds."""
_CHUNK_BYTES = 1 << 16
_BOM = codecs.BOM_UTF8
_KINDS: dict[type, str] = {list: "an array", str: "text", bool: "true or false", type(None): "null"}


class _Flaw:
    """Stands in a decoded value for what JSON text may say and a record must not."""

    def __init__(self, text: str) -> None:
        self.text = text


def _unique(pairs: list[tuple[str, object]]) -> object:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    names = [name for name, _ in pairs]
    twice = next(name for name in names if names.count(name) > 1)
    return _Flaw(f"found the key {twice[:40]!r} twice in one object, expected each key once; keep one of them")


def _no_constant(name: str) -> object:
    return _Flaw(f"found the number {name}, expected JSON; write it as text or leave it out")


def _finite(digits: str) -> object:
    number = float(digits)
    if math.isfinite(number):
        return number
    return _Flaw(f"found the number {digits[:40]}, expected one that a float64 can hold; correct it")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)


def read_elements(stream: ByteStream) -> Iterator[Element]:
    """The JSON objects of a seekable stream: the elements of one array, one object per line, or one after the other."""
    head = stream.read(HEAD_BYTES)
    stream.seek(0)
    if head.startswith(_BOM):
        stream.seek(len(_BOM))
        yield 1, BadInputError("found a byte order mark, expected UTF-8 without one; save the file without it")
    if is_array(head):
        yield from _read_array(stream)
    elif is_spread(head):
        yield from _read_spread(stream, "\n" if b"\n" in head else "\r")
    else:
        yield from read_lines(stream)


def decode_object(text: str) -> Value | BadInputError:
    """One JSON object, or what is wrong with the text."""
    try:
        return checked(_DECODER.decode(text))
    except RecursionError:
        return _too_deep()
    except ValueError as error:
        return _malformed(text, error)


def checked(value: object) -> Value | BadInputError:
    """The value if it is an object of sound text, numbers, lists and objects; else what is wrong with it."""
    flaw = _find_flaw(value, depth=0)
    if flaw is not None:
        return BadInputError(flaw)
    if not isinstance(value, dict):
        kind = _KINDS.get(type(value), "a number")
        return BadInputError(f"found {kind}, expected a JSON object; write one record as {{…}} per line or element")
    return value


def _find_flaw(value: object, depth: int) -> str | None:
    if depth > MAX_DEPTH:
        return str(_too_deep())
    if isinstance(value, _Flaw):
        return value.text
    if isinstance(value, str):
        return text_flaw(value)
    if isinstance(value, dict):
        parts = [*value.keys(), *value.values()]
    elif isinstance(value, list):
        parts = value
    else:
        return None
    return next((flaw for part in parts if (flaw := _find_flaw(part, depth + 1)) is not None), None)


def _too_deep() -> BadInputError:
    return BadInputError(f"found values nested deeper than {MAX_DEPTH}, expected a flat record; flatten it")


def _too_long() -> BadInputError:
    return BadInputError(f"found a record longer than {MAX_RECORD_BYTES} bytes, expected a shorter one; split it up")


def _malformed(text: str, error: ValueError) -> BadInputError:
    if "\x00" in text:
        return BadInputError("found a NUL byte, expected JSON text; remove it, or save the file as UTF-8")
    if not text.isascii() and any("\udc80" <= letter <= "\udcff" for letter in text):
        return BadInputError("found bytes that are not UTF-8, expected JSON in UTF-8; save the file as UTF-8")
    reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
    where = f" at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else ""
    hint = "" if text.lstrip()[:1] in ("{", "[") else ", or give a table the name of one (.csv, .tsv)"
    return BadInputError(f"found broken JSON ({reason}{where}), expected one object; correct it{hint}")


def _torn() -> BadInputError:
    return BadInputError("found a torn last record, expected the file to end after a whole one; write it out again")


def is_array(head: bytes) -> bool:
    """Whether a file that begins so is one JSON array."""
    return head.removeprefix(_BOM).lstrip()[:1] == b"["


def is_spread(head: bytes) -> bool:
    """Whether a file that begins so holds objects over several lines, or lines that end as an old Mac ended them."""
    begun = head.removeprefix(_BOM).lstrip()
    first, end, _ = begun.partition(b"\n")
    if not begun.startswith(b"{"):
        return False
    return first.rstrip()[-1:] in (b"{", b"[", b",") if end else b"\r" in begun.rstrip()


def read_lines(stream: ByteStream) -> Iterator[Element]:
    """One JSON object per line, from where the stream stands."""
    number = 0
    while line := stream.readline(MAX_RECORD_BYTES + 1):
        number += 1
        whole = line.endswith(b"\n")
        if not whole and len(line) > MAX_RECORD_BYTES:
            while line and not line.endswith(b"\n"):
                line = stream.readline(_CHUNK_BYTES)
            yield number, _too_long()
            continue
        if not line.strip():
            continue
        found = decode_object(line.decode("utf-8", errors="surrogateescape"))
        # A last line without its newline is sound if it parses; if not, a writer was cut off in it.
        torn = not whole and isinstance(found, BadInputError) and "broken JSON" in str(found)
        yield number, _torn() if torn else found


class _Window:
    """A piece of the stream's text that moves forward, with the line that its cursor stands on."""

    def __init__(self, stream: ByteStream, line_end: str = "\n") -> None:
        self._stream, self._line_end = stream, line_end
        # Bytes that are not UTF-8 become lone surrogates, so that they are found in the record they stand in.
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="surrogateescape")
        self.text = ""
        self.cursor = 0
        self.line = 1
        self.ended = False

    def fill(self) -> bool:
        """Read on, dropping what lies behind the cursor; False at the end of the stream."""
        if self.ended:
            return False
        chunk = self._stream.read(_CHUNK_BYTES)
        self.ended = not chunk
        self.text = self.text[self.cursor :] + self._decoder.decode(chunk, final=self.ended)
        self.cursor = 0
        return not self.ended

    def advance(self, cursor: int) -> None:
        self.line += self.text.count(self._line_end, self.cursor, cursor)
        self.cursor = cursor

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            end = self.cursor
            while end < len(self.text) and self.text[end] in " \t\r\n":
                end += 1
            self.advance(end)
            if end < len(self.text):
                return self.text[end]
            if not self.fill():
                return self.text[self.cursor : self.cursor + 1]

    def decode(self) -> Value | BadInputError | None:
        """The value at the cursor; None where the text is no JSON (with the cursor left before it)."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.cursor)
            except RecursionError:
                return None
            except ValueError:
                # Broken, or not all there yet: only more text can tell.
                if len(self.text) - self.cursor > MAX_RECORD_BYTES or not self.fill():
                    return None
                continue
            if end == len(self.text) and self.fill():
                continue
            long = end - self.cursor > MAX_RECORD_BYTES
            self.advance(end)
            return _too_long() if long else checked(value)

    def diagnose(self) -> BadInputError:
        """What is wrong at the cursor, after `decode` has returned None."""
        if len(self.text) - self.cursor > MAX_RECORD_BYTES:
            return _too_long()
        try:
            _DECODER.raw_decode(self.text, self.cursor)
        except RecursionError:
            return _too_deep()
        except ValueError as error:
            cut_off = isinstance(error, json.JSONDecodeError) and (
                error.pos >= len(self.text.rstrip()) or error.msg.startswith("Unterminated string")
            )
            return _torn() if cut_off else _malformed(self.text[self.cursor :], error)
        return _torn()


def _read_array(stream: ByteStream) -> Iterator[Element]:
    window = _Window(stream)
    window.peek()
    window.advance(window.cursor + 1)
    first = True
    while True:
        mark = window.peek()
        if mark == "]":
            break
        if not first:
            if mark != ",":
                yield window.line, _torn() if not mark else _broken_array(mark)
                return
            window.advance(window.cursor + 1)
            window.peek()
        first = False
        line = window.line
        found = window.decode()
        yield line, window.diagnose() if found is None else found
        if found is None:
            return
    window.advance(window.cursor + 1)
    if mark := window.peek():
        yield window.line, BadInputError(f"found {mark!r} after the array, expected the file to end; remove the rest")


def _read_spread(stream: ByteStream, line_end: str) -> Iterator[Element]:
    window = _Window(stream, line_end)
    while window.peek():
        line = window.line
        found = window.decode()
        yield line, window.diagnose() if found is None else found
        if found is None:
            return


def _broken_array(mark: str) -> BadInputError:
    return BadInputError(f"found {mark!r} between two records, expected a comma or the array's end; correct it")
