"""How a file is known again after it has grown: by the digests of its beginnings.

A place is the digest of a file's content and a record's number in it, and a file to which lines are appended has
another digest. But what it was before is one of its beginnings: where a store knows the digest of one, the records
that it consumed in there stand where they stood.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection
from typing import IO, Any

from lifelong_edit.errors import BadInputError
from lifelong_edit.facts.decoding import HEAD_BYTES, MAX_RECORD_BYTES, decode_object, is_array, is_spread

Known = Callable[[str], Collection[int]]
"""The numbers of the records that a store has consumed of a file with that digest."""


class Span:
    """A stretch of a stream, as a stream: what is written behind it while it is read is not seen."""

    def __init__(self, stream: IO[bytes], start: int, end: int) -> None:
        self._stream, self._start, self._end = stream, start, end
        self.seek(0)

    def read(self, count: int) -> bytes:
        """Up to `count` bytes."""
        return self._stream.read(min(count, self._end - self._stream.tell()))

    def readline(self, limit: int) -> bytes:
        """Up to the end of the line, or `limit` bytes."""
        return self._stream.readline(min(limit, self._end - self._stream.tell()))

    def seek(self, offset: int) -> int:
        """Go to a place, counted from the beginning of the stretch."""
        return self._stream.seek(self._start + offset) - self._start


class Content:
    """What has been read of a file by now: its digest, its size, and which of its records were consumed before."""

    def __init__(self, known: Known | None = None) -> None:
        self._known = known
        self._hash = hashlib.blake2b(digest_size=16)
        self._earlier: dict[int, list[str]] = defaultdict(list)
        self.digest = self._hash.hexdigest()
        """32 hex digits: BLAKE2b of the content."""
        self.size = 0
        """Its bytes; a torn last line, or one that is still being written, is not among them."""
        self.line = 0
        """Its lines."""

    def earlier(self, number: int) -> tuple[str, ...]:
        """The digests of the file's beginnings in which a store has consumed a record, by the record's number."""
        return tuple(self._earlier.get(number, ()))

    def take_bytes(self, stream: IO[bytes]) -> None:
        """Read to the end of a stream that has no lines."""
        stream.seek(0)
        while piece := stream.read(1 << 20):
            self._hash.update(piece)
        self._settle(stream.tell())
        self.digest = self._hash.hexdigest()

    def take(self, stream: IO[bytes], *, growing: bool = False, table: bool = False) -> None:
        """Read on to the end of the stream, or, of a file that is still being written, to its last whole line.

        A last line without its newline counts if it is a record; where it is torn, a later reading finds the whole. Of
        a table as text any line is one.
        """
        stream.seek(0)
        head = stream.read(HEAD_BYTES)
        array = is_array(head) or (not table and is_spread(head))
        stream.seek(self.size)
        before: Any = None  # the hash before a line of which the end has not been met yet
        pieces = 0
        while piece := stream.readline(MAX_RECORD_BYTES + 1):
            before, pieces = before or self._hash.copy(), pieces + 1
            self._hash.update(piece)
            if piece.endswith(b"\n"):
                if pieces == 1:
                    self._note_bare(before, piece)
                self._settle(stream.tell())
                before, pieces = None, 0
            else:
                last = piece
        if before is not None and array:
            self._settle(stream.tell())
        elif before is not None:
            self._note(self._hash)  # all the bytes: so it was known to earlier releases
            self._hash = before
            if not growing and pieces == 1 and (table or _is_record(last)):
                self._hash.update(last.rstrip())
                self._settle(stream.tell())
        self.digest = self._hash.hexdigest()

    def _settle(self, size: int) -> None:
        """A line is in."""
        self.size, self.line = size, self.line + 1
        self._note(self._hash)

    def _note_bare(self, before: Any, line: bytes) -> None:
        """The file may once have ended in this line, before its newline was written; blanks did not count then."""
        for bare in {line.rstrip(), line.removesuffix(b"\n")} if self._known else ():
            shorter = before.copy()
            shorter.update(bare)
            self._note(shorter)

    def _note(self, content: Any) -> None:
        if self._known is None:
            return
        digest = content.hexdigest()
        for number in self._known(digest):
            self._earlier[number].append(digest)


def _is_record(line: bytes) -> bool:
    return len(line) <= MAX_RECORD_BYTES and not isinstance(
        decode_object(line.decode("utf-8", "surrogateescape")), BadInputError
    )
