"""Where records come from: files, globs, standard input and `datasets` ids."""

from __future__ import annotations

import contextlib
import glob
import gzip
import hashlib
import os
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

from lifelong_edit.errors import BadInputError, UsageError
from lifelong_edit.facts.decoding import Element, checked, read_elements
from lifelong_edit.facts.growing import Content, Known, Span

STDIN = "-"
DATASET_PREFIX = "hf:"
GZIP = b"\x1f\x8b"
_TORN_GZIP = (gzip.BadGzipFile, zlib.error, EOFError)
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

    Raises `UsageError` for a file that does not exist or may not be read, a folder, and a glob that matches nothing.
    """
    if isinstance(sources, str):
        raise UsageError(f"found one text {sources!r} as sources, expected a list of them; pass [{sources!r}]")
    found: list[str] = []
    for source in sources:
        if source == STDIN or source.startswith(DATASET_PREFIX):
            found.append(source)
        elif Path(source).exists():
            _require_readable(source)
            found.append(source)
        elif matches := sorted(path for path in glob.glob(source, recursive=True) if Path(path).is_file()):  # noqa: PTH207
            for match in matches:
                _require_readable(match)
            found.extend(matches)
        else:
            raise UsageError(f"found no file {source!r}, expected a file, a glob, - or hf:NAME; check the path")
    if found.count(STDIN) > 1:
        raise UsageError("found - twice, expected standard input once; leave one out")
    return found


def _require_readable(name: str) -> None:
    """Refuse what opening would refuse, before anything is read of the sources that stand before it."""
    if Path(name).is_dir():
        raise UsageError(f"found the folder {name!r}, expected a file, a glob, - or hf:NAME; name the files in it")
    if not os.access(name, os.R_OK):
        raise UsageError(f"found the file {name!r}, which may not be read, expected a readable one; change its mode")


def can_read_twice(sources: Sequence[str]) -> bool:
    """Whether every source is a plain file, so that a first reading costs nothing and takes nothing away."""
    return all(not s.startswith(DATASET_PREFIX) and s != STDIN and Path(s).is_file() for s in expand(sources))


@contextlib.contextmanager
def open_source(source: str, known: Known | None = None) -> Iterator[Source]:
    """Open one source of `expand`; files are hashed before the first element is read.

    Standard input and pipes are spooled to a temporary file first, because a record's place holds the digest of
    everything that came with it. What is compressed by gzip is read, and hashed, as what was compressed.
    known: what a store has consumed, so that a file is known again after it has grown.
    """
    if source.startswith(DATASET_PREFIX):
        yield _open_dataset(source)
        return
    with _open_bytes(source) as stream:
        name, content = "<stdin>" if source == STDIN else source, Content(known)
        elements: Iterator[Element]
        try:
            content.take(stream)
            elements = read_elements(Span(stream, 0, stream.tell()))
        except _TORN_GZIP as error:
            elements = iter([(1, BadInputError(_torn(error)))])
        yield Source(name, content.digest, elements, content.earlier)


@contextlib.contextmanager
def open_text(source: str) -> Iterator[Iterator[tuple[int, str]]]:
    """The lines (1-based number, text) of a plain text file that are not blank."""
    with _open_bytes(source) as stream:
        yield _lines(source, stream)


def _lines(source: str, stream: IO[bytes]) -> Iterator[tuple[int, str]]:
    number = 0
    try:
        for line in stream:
            number += 1
            if line.strip():
                yield number, _decode_line(source, number, line)
    except _TORN_GZIP as error:
        raise BadInputError(f"{source}:{number + 1}: {_torn(error)}") from None


def _torn(error: Exception) -> str:
    return f"found a gzip file that cannot be read ({error}), expected a whole one; write it out again"


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
        with _spooled(sys.stdin.buffer) as spool, _plain(spool) as plain:
            yield plain
        return
    try:
        stream = Path(source).open("rb")  # noqa: SIM115 - closed below, the `with` must not hold the error handling
    except OSError as error:
        raise UsageError(f"cannot read {source!r}: {error.strerror}; expected a readable file") from None
    with stream, contextlib.ExitStack() as opened:
        seekable = stream if stream.seekable() else opened.enter_context(_spooled(stream))
        yield opened.enter_context(_plain(seekable))


@contextlib.contextmanager
def _plain(stream: IO[bytes]) -> Iterator[IO[bytes]]:
    """The stream, or where it is compressed by gzip, what was compressed."""
    compressed = stream.read(len(GZIP)) == GZIP
    stream.seek(0)
    if not compressed:
        yield stream
        return
    with gzip.GzipFile(fileobj=stream) as plain:
        yield cast("IO[bytes]", plain)


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
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
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
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            yield number, BadInputError(f"found rows that cannot be read ({reason}), expected records; load it anew")
            return
        yield number, checked(_without_none(row))


def _without_none(value: object) -> object:
    """Tables fill absent fields with None; records leave them out."""
    if isinstance(value, dict):
        return {key: _without_none(part) for key, part in value.items() if part is not None}
    if isinstance(value, list):
        return [_without_none(part) for part in value]
    return value
