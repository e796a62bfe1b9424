"""Files that are still being written: their records as they come, as `tail -F` shows lines."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from lifelong_edit.errors import BadInputError, UsageError
from lifelong_edit.facts.compressed import compression_of
from lifelong_edit.facts.decoding import Element, is_array, is_spread, read_elements, read_lines
from lifelong_edit.facts.growing import Content, Known, Span
from lifelong_edit.facts.reading import READER, ReadReport, recognise_at
from lifelong_edit.facts.record import Fact, Record
from lifelong_edit.facts.shapes import Reader, entry_of
from lifelong_edit.facts.sources import are_files, expand
from lifelong_edit.facts.tables import kind_of

POLL = 0.25
"""Seconds between two looks at the files."""
_TAIL_BYTES = 4096

Say = Callable[[str], None]


def follow_facts(
    sources: Sequence[str],
    *,
    idle: float,
    stopped: Callable[[], bool],
    skip_bad: bool = False,
    report: ReadReport | None = None,
    known: Known | None = None,
    reader: Reader = READER,
    say: Say = lambda message: None,
) -> Iterator[Record | None]:
    """The facts of files and globs, first those that are there, then further ones as whole lines are appended.

    Yields None where no more have come for `idle` seconds, and before a file is read that took another's place: what
    came before is then to be done with. Ends when `stopped` says so. A file that was replaced or cut short is told to
    `say` and read from its beginning, as a file of its own; known as of `read_facts`, so that what it has in common
    with the one before is known again. Raises `UsageError` for sources that cannot grow, `BadInputError` as
    `read_facts`.
    """
    require_growing(sources)
    report = report if report is not None else ReadReport()
    files = [_Followed(name, known, say) for name in expand(sources)]
    waiting, since, told = False, time.monotonic(), len(report.skipped_bad)
    while not stopped():
        came = False
        for file in files:
            for found in file.more():
                came = True
                if found is None:
                    yield None
                elif facts := recognise_at(file.name, found, skip_bad=skip_bad, report=report, reader=reader):
                    yield from file.records(facts, found)
                else:
                    file.pass_over()
                    if len(report.skipped_bad) > told:
                        told = len(report.skipped_bad)
                        say(f"left out: {report.skipped_bad[-1]}")
                if stopped():
                    return
        if came:
            waiting, since = True, time.monotonic()
        elif waiting and time.monotonic() - since >= idle:
            waiting = False
            yield None
        else:
            time.sleep(min(POLL, idle) if waiting else POLL)


def require_growing(sources: Sequence[str]) -> None:
    """Raise `UsageError` for sources that cannot be followed: standard input, pipes, data sets."""
    if not are_files(sources):
        raise UsageError("found a source that is no plain file, expected files that grow; leave --follow out for it")


class _Followed:
    """A file, and how far it has been read."""

    def __init__(self, name: str, known: Known | None, say: Say) -> None:
        self.name, self._known, self._say = name, known, say
        self._there = True
        self._begin(None)

    def _begin(self, stream: IO[bytes] | None) -> None:
        self._content = Content(self._known)
        self._inode = None if stream is None else _inode(stream)
        self._number, self._tail = 0, b""

    def records(self, facts: Sequence[Fact], element: Element) -> Iterator[Record]:
        """The records of what was read last."""
        content = self._content
        for fact in facts:
            place = self.name, element[0], content.digest, self._number
            self._number += 1
            yield Record(fact, *place, content.earlier(self._number - 1), entry_of(element[1]))

    def pass_over(self) -> None:
        """What was read last is no fact; it counts as one all the same."""
        self._number += 1

    def more(self) -> Iterator[Element | None]:
        """The elements that have come; None first where they are those of another file."""
        try:
            stream = Path(self.name).open("rb")  # noqa: SIM115 - closed below; only the opening may fail here
        except OSError as error:
            if self._there:
                self._say(f"{self.name} cannot be read ({error.strerror}); waiting for it")
            self._there = False
            return
        self._there = True
        with stream:
            if reason := self._changed(stream):
                self._say(f"{self.name} {reason}: it is read from its beginning, as a file of its own")
                yield None
                self._begin(stream)
            self._inode = _inode(stream)
            yield from self._read(stream)

    def _changed(self, stream: IO[bytes]) -> str | None:
        """Why the file is not the one that was being read, if so."""
        if self._inode not in (None, _inode(stream)):
            return "was replaced"
        if os.fstat(stream.fileno()).st_size < self._content.size:
            return "is shorter than what was read of it"
        stream.seek(self._content.size - len(self._tail))
        return None if stream.read(len(self._tail)) == self._tail else "was written anew"

    def _read(self, stream: IO[bytes]) -> Iterator[Element]:
        start, line = self._content.size, self._content.line
        if start == 0:
            stream.seek(0)
            head = stream.read(_TAIL_BYTES)
            if (kind := _without_lines(self.name, head)) is not None:
                raise BadInputError(
                    f"{self.name}:1: found a {kind}, expected one record per line in a file that is followed; "
                    "leave --follow out for it"
                )
        self._content.take(stream, growing=True)
        end = self._content.size
        if end == start:
            return
        stream.seek(max(0, end - _TAIL_BYTES))
        self._tail = stream.read(end - stream.tell())
        span = Span(stream, start, end)
        for at, value in read_elements(span) if start == 0 else read_lines(span):
            yield line + at, value


def _without_lines(name: str, head: bytes) -> str | None:
    """What a file is of which one cannot read on line by line; None where one can."""
    if (compression := compression_of(head)) is not None:
        return f"{compression} file"
    if kind_of(name, head) != "json":
        return "table"
    if is_array(head):
        return "JSON array"
    return "record over several lines" if is_spread(head) and b"\n" in head else None


def _inode(stream: IO[bytes]) -> tuple[int, int]:
    found = os.fstat(stream.fileno())
    return found.st_dev, found.st_ino
