"""Where records come from: files, globs, standard input and `datasets` ids."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

from lifelong_edit.errors import BadInputError, UsageError, first_line
from lifelong_edit.facts.compressed import ZIP, decompressed
from lifelong_edit.facts.decoding import HEAD_BYTES, Element, checked, read_elements
from lifelong_edit.facts.growing import Content, Known, Span
from lifelong_edit.facts.tables import (
    as_json,
    bare_name,
    is_saved,
    kind_of,
    open_saved,
    read_arrow,
    read_csv,
    read_parquet,
    separator_of,
)

STDIN = "-"
DATASET_PREFIX = "hf:"
_SPOOL_BYTES = 1 << 24


class Source:
    """One opened source: its name for messages, the digest of all that it holds, and its elements.

    earlier: of a record's number, the digests that the source had when it was shorter, as of `Content.earlier`.
    """

    def __init__(
        self, name: str, digest: str, elements: Iterator[Element], earlier: Callable[[int], tuple[str, ...]]
    ) -> None:
        self.name = name
        self.digest = digest
        self.elements = elements
        self.earlier = earlier


def expand(sources: Sequence[str]) -> list[str]:
    """File names, `-` and data set ids in order, with globs expanded and sorted.

    A folder that `datasets` has saved is a source as a file is. Raises `UsageError` for a file that does not exist or
    may not be read, any other folder, and a glob that matches nothing.
    """
    if isinstance(sources, str):
        raise UsageError(f"found one text {sources!r} as sources, expected a list of them; pass [{sources!r}]")
    found: list[str] = []
    for source in sources:
        if source == STDIN or source.startswith(DATASET_PREFIX):
            found.append(source)
        elif _is_there(source):
            _require_readable(source)
            found.append(source)
        elif matches := sorted(path for path in glob.glob(source, recursive=True) if Path(path).is_file()):  # noqa: PTH207
            for match in matches:
                _require_readable(match)
            found.extend(matches)
        else:
            told = source if len(source) <= 200 else f"{source[:200]}…"
            raise UsageError(f"found no file {told!r}, expected a file, a glob, - or hf:NAME; check the path")
    if found.count(STDIN) > 1:
        raise UsageError("found - twice, expected standard input once; leave one out")
    return found


def _is_there(source: str) -> bool:
    try:
        return Path(source).exists()
    except OSError:  # a name that no file system can have: too long, for instance
        return False


def _require_readable(name: str) -> None:
    """Refuse what opening would refuse, before anything is read of the sources that stand before it."""
    if Path(name).is_dir():
        if is_saved(name):
            return
        raise UsageError(
            f"found the folder {name!r}, expected a file, a glob, - or hf:NAME, or a folder that datasets has saved; "
            "name the files in it"
        )
    if not os.access(name, os.R_OK):
        raise UsageError(f"found the file {name!r}, which may not be read, expected a readable one; change its mode")


def can_read_twice(sources: Sequence[str]) -> bool:
    """Whether every source is a plain file, so that a first reading costs nothing and takes nothing away."""
    named = expand(sources)
    return all(not s.startswith(DATASET_PREFIX) and s != STDIN and (Path(s).is_file() or is_saved(s)) for s in named)


def are_files(sources: Sequence[str]) -> bool:
    """Whether every source is a plain file."""
    return all(not s.startswith(DATASET_PREFIX) and s != STDIN and Path(s).is_file() for s in expand(sources))


@contextlib.contextmanager
def open_source(source: str, known: Known | None = None) -> Iterator[Source]:
    """Open one source of `expand`; files are hashed before the first element is read.

    Standard input and pipes are spooled to a temporary file first, because a record's place holds the digest of
    everything that came with it. What is compressed is read, and hashed, as what was compressed.
    known: what a store has consumed, so that a file is known again after it has grown.
    """
    if source.startswith(DATASET_PREFIX):
        yield _open_dataset(source)
        return
    if source != STDIN and Path(source).is_dir():
        digest, rows = open_saved(source)
        yield Source(source, digest, rows, lambda number: ())
        return
    name, content = "<stdin>" if source == STDIN else source, Content(known)
    with contextlib.ExitStack() as opened:
        try:
            elements = _elements(name, opened.enter_context(_open_bytes(source)), content)
        except BadInputError as error:  # a torn compressed file
            elements = iter([(1, error)])
        yield Source(name, content.digest, elements, content.earlier)


def _elements(name: str, stream: IO[bytes], content: Content) -> Iterator[Element]:
    """The elements of an opened file, by what it holds; all of it is hashed first."""
    stream.seek(0)
    head = stream.read(HEAD_BYTES)
    if head.startswith(ZIP):
        kind = "a workbook" if bare_name(name).casefold().endswith(".xlsx") else "a zip archive"
        told = f"found {kind}, expected records or a table; unpack it, or save the table as CSV"
        return iter([(1, BadInputError(told))])
    match kind_of(name, head):
        case "parquet":
            content.take_bytes(stream)
            return read_parquet(stream)
        case "arrow":
            content.take_bytes(stream)
            return read_arrow(stream)
        case "csv":
            content.take(stream, table=True)
            return read_csv(stream, separator_of(name, head) or ",")
        case _:
            content.take(stream)
            return read_elements(Span(stream, 0, stream.tell()))


@contextlib.contextmanager
def open_text(source: str) -> Iterator[Iterator[tuple[int, str]]]:
    """The lines (1-based number, text) of a plain text file that are not blank."""
    with _open_bytes(source) as stream:
        yield _lines(source, stream)


def _lines(source: str, stream: IO[bytes]) -> Iterator[tuple[int, str]]:
    number = 0
    lines = iter(stream)
    while True:
        try:
            line = next(lines, None)
        except BadInputError as error:
            raise BadInputError(f"{source}:{number + 1}: {error}") from None
        if line is None:
            return
        number += 1
        if line.strip():
            yield number, _decode_line(source, number, line)


def _decode_line(source: str, number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
    except UnicodeDecodeError:
        raise BadInputError(
            f"{source}:{number}: found bytes that are not UTF-8, expected text; save the file as UTF-8"
        ) from None


@contextlib.contextmanager
def _open_bytes(source: str) -> Iterator[IO[bytes]]:
    if source == STDIN:
        with _spooled(sys.stdin.buffer) as spool, decompressed(spool) as plain:
            yield plain
        return
    try:
        stream = Path(source).open("rb")  # noqa: SIM115 - closed below, the `with` must not hold the error handling
    except OSError as error:
        raise UsageError(f"cannot read {source!r}: {error.strerror}; expected a readable file") from None
    with stream, contextlib.ExitStack() as opened:
        seekable = stream if stream.seekable() else opened.enter_context(_spooled(stream))
        yield opened.enter_context(decompressed(seekable))


@contextlib.contextmanager
def _spooled(stream: IO[bytes]) -> Iterator[IO[bytes]]:
    with tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES) as spool:
        while chunk := stream.read(1 << 16):
            spool.write(chunk)
        spool.seek(0)
        yield cast("IO[bytes]", spool)


def _open_dataset(source: str) -> Source:
    name, _, split = source.removeprefix(DATASET_PREFIX).partition(":")
    split = split or "train"
    builder = _load_builder(source, name)
    if split not in (builder.config.data_files or {split: None}):
        known = ", ".join(map(str, builder.config.data_files))
        raise UsageError(f"found no split {split!r} in {name!r}, expected one of {known}; write hf:{name}:SPLIT")
    files = (builder.config.data_files or {}).get(split)
    fingerprint = repr([name, split, builder.hash, getattr(files, "origin_metadata", None)])
    digest = hashlib.blake2b(fingerprint.encode(), digest_size=16).hexdigest()
    return Source(source, digest, _read_rows(builder, split), lambda number: ())


def _load_builder(source: str, name: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset_builder(name)
    except Exception as error:  # datasets and its hub client raise a dozen unrelated types
        reason = first_line(error)
        raise UsageError(f"cannot load the data set {source!r}: {reason}; expected hf:OWNER/NAME[:SPLIT]") from None


def _read_rows(builder: Any, split: str) -> Iterator[Element]:
    rows = iter(builder.as_streaming_dataset(split=split))
    number = 0
    while True:
        number += 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:  # what a torn download or a bad file raises depends on its format
            reason = first_line(error)
            yield number, BadInputError(f"found rows that cannot be read ({reason}), expected records; load it anew")
            return
        yield number, checked(as_json(row))
