"""Files that are compressed: what was compressed, as a stream, told by the file's first bytes."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import tempfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, TypeVar, cast

from lifelong_edit.errors import BadInputError, first_line

T = TypeVar("T")

GZIP, XZ, BZIP2, ZSTANDARD = b"\x1f\x8b", b"\xfd7zXZ\x00", b"BZh", b"\x28\xb5\x2f\xfd"
ZIP = b"PK\x03\x04"
SUFFIXES = (".gz", ".xz", ".bz2", ".zst", ".zstd")
_NAMES = {GZIP: "gzip", XZ: "xz", BZIP2: "bzip2", ZSTANDARD: "zstd"}
_TORN = (gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError)
_SPOOL_BYTES = 1 << 24


def compression_of(head: bytes) -> str | None:
    """The name of what a file that begins so is compressed by; None where it is not."""
    return next((name for mark, name in _NAMES.items() if head.startswith(mark)), None)


@contextlib.contextmanager
def decompressed(stream: IO[bytes]) -> Iterator[IO[bytes]]:
    """The stream, or where it is compressed, what was compressed; both can be read from anywhere.

    Reading what was compressed raises `BadInputError` (without file and line) where it is torn. So does opening it
    where it cannot be read from anywhere without being unpacked first, as zstd.
    """
    head = stream.read(8)
    stream.seek(0)
    name = compression_of(head)
    if name is None:
        yield stream
    elif name == "zstd":
        with tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES) as spool:
            _unpack(stream, spool)
            spool.seek(0)
            yield cast("IO[bytes]", spool)
    else:
        kinds: dict[str, Callable[[Any], Any]] = {"gzip": _gzip, "xz": lzma.LZMAFile, "bzip2": bz2.BZ2File}
        with kinds[name](stream) as plain:
            yield cast("IO[bytes]", _Sound(plain, name))


def _gzip(stream: IO[bytes]) -> gzip.GzipFile:
    return gzip.GzipFile(fileobj=stream)


def _unpack(stream: IO[bytes], spool: Any) -> None:
    import pyarrow  # comes with datasets; Python has zstd of its own from 3.14 on

    try:
        with pyarrow.CompressedInputStream(pyarrow.PythonFile(stream, "r"), "zstd") as plain:
            while chunk := plain.read(1 << 20):
                spool.write(chunk)
    except (OSError, pyarrow.ArrowException) as error:
        raise torn("zstd", error) from None


def torn(name: str, error: Exception) -> BadInputError:
    """The error for a compressed file that cannot be read to its end."""
    return BadInputError(
        f"found a {name} file that cannot be read ({first_line(error)}), expected a whole one; write it out again"
    )


class _Sound:
    """A compressed stream whose errors are ours."""

    def __init__(self, plain: Any, name: str) -> None:
        self._plain, self._name = plain, name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plain, name)

    def __iter__(self) -> Iterator[bytes]:
        while line := self.readline():
            yield line

    def read(self, count: int = -1, /) -> bytes:
        """Up to `count` bytes."""
        found: bytes = self._guarded(self._plain.read, count)
        return found

    def readline(self, limit: int = -1, /) -> bytes:
        """Up to the end of the line, or `limit` bytes."""
        found: bytes = self._guarded(self._plain.readline, limit)
        return found

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to a place."""
        found: int = self._guarded(self._plain.seek, offset, whence)
        return found

    def _guarded(self, call: Callable[..., T], *given: int) -> T:
        try:
            return call(*given)
        except _TORN as error:
            raise torn(self._name, error) from None
        except OSError as error:
            if self._name != "bzip2":
                raise
            raise torn(self._name, error) from None
