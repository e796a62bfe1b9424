"""The two meta pages of an LMDB file, held against each other and against the free lists that they name.

LMDB alternates between them: transaction N is in page N mod 2, beside its predecessor, and the one with the larger
number counts. It keeps no checksum of them, so one flipped bit of a number makes it go back to the state before, or
hold the state before for the newest, without a word. What tells: the numbers follow each other, each stands in its
page, and every transaction leaves its number in its free list, because it frees at least the root that it replaces.
Of the older page no more is asked: where the newest could not be written, LMDB leaves a mixture there.
"""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path
from typing import NamedTuple

from lifelong_edit.errors import StoreDamagedError

_META = 0x08
_BRANCH, _LEAF = 0x01, 0x02
_HEADER = 16
_MAGIC = 0xBEEFC0DE
NO_PAGE = 2**64 - 1
_ATTEMPTS = 5
"""A page may be read while another process writes it."""


class Meta(NamedTuple):
    """One of the two. free, main: what it notes of the free list and of the table of tables, 48 bytes each."""

    page: int
    flags: int
    magic: int
    map_size: int
    free: bytes
    main: bytes
    last_page: int
    transaction: int

    @property
    def roots(self) -> tuple[int, int]:
        """The first page of the free list and of the table of tables."""
        return int.from_bytes(self.free[40:], "little"), int.from_bytes(self.main[40:], "little")


def check_meta_pages(file: Path, page_size: int) -> None:
    """Raise StoreDamagedError where the meta pages of a database cannot be those that LMDB left."""
    wrong = None
    for attempt in range(_ATTEMPTS):
        wrong = _find_wrong(file, page_size)
        if wrong is None:
            return
        if attempt + 1 < _ATTEMPTS:
            time.sleep(0.01)
    raise StoreDamagedError(f"{file} has damaged meta pages: {wrong}; restore the store from a backup")


def meta_of(file: Path, page_size: int, transaction: int) -> Meta | None:
    """The meta page that a transaction left, while it is there."""
    with file.open("rb") as data:
        data.seek(transaction % 2 * page_size)
        found = _parse(data.read(page_size))
    return found if found.transaction == transaction else None


def _find_wrong(file: Path, size: int) -> str | None:
    with file.open("rb") as data:
        metas = [_parse(data.read(size)) for _ in range(2)]
        for number, meta in enumerate(metas):
            if (meta.page, meta.flags & _META, meta.magic) != (number, _META, _MAGIC):
                return f"page {number} is no meta page"
            if meta.transaction % 2 != number:
                return f"page {number} holds transaction {meta.transaction}"
            if meta.map_size % size or (meta.last_page + 1) * size > meta.map_size:
                return f"page {number} names a map of {meta.map_size} bytes for {meta.last_page + 1} pages"
        first, second = metas
        if abs(first.transaction - second.transaction) != 1:
            return f"they hold transactions {first.transaction} and {second.transaction}"
        if first.roots[1] == second.roots[1] != NO_PAGE:
            return f"both name page {first.roots[1]} as their root"
        newest = max(metas, key=lambda meta: meta.transaction)
        freed = _last_freed(data.fileno(), newest, size)
        if freed not in (None, newest.transaction):
            return f"transaction {newest.transaction} has the free list of transaction {freed}"
    return None


def _parse(page: bytes) -> Meta:
    if len(page) < 152:
        return Meta(-1, 0, 0, 0, b"", b"", 0, 0)
    number, _, flags = struct.unpack_from("<QHH", page)
    (magic,) = struct.unpack_from("<I", page, _HEADER)
    (map_size,) = struct.unpack_from("<Q", page, 32)
    last_page, transaction = struct.unpack_from("<QQ", page, 136)
    return Meta(number, flags, magic, map_size, page[40:88], page[88:136], last_page, transaction)


def _last_freed(descriptor: int, meta: Meta, size: int) -> int | None:
    """The last key of a free list, the number of a transaction; None where the list is empty, −1 where it is none."""
    number = meta.roots[0]
    if number == NO_PAGE:
        return None
    for _ in range(32):  # deeper than any tree
        if not 1 < number <= meta.last_page:
            return -1
        page = os.pread(descriptor, size, number * size)
        if len(page) < size:
            return -1
        found, _, flags, lower = struct.unpack_from("<QHHH", page)
        if found != number or not _HEADER < lower <= size - 8:
            return -1
        (node,) = struct.unpack_from("<H", page, lower - 2)
        if not lower <= node <= size - 16:
            return -1
        if flags & _LEAF:
            (key,) = struct.unpack_from("<Q", page, node + 8)
            return int(key)
        if not flags & _BRANCH:
            return -1
        low, high, top = struct.unpack_from("<HHH", page, node)
        number = low | high << 16 | top << 32
    return -1
