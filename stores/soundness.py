"""The pages of a snapshot of an LMDB file: every pointer, bound and count, before LMDB follows any of them.

LMDB keeps no checksum of its pages and trusts what they say: a flipped bit there ends the process (SIGBUS, a failed
assertion) or hides records, and one in `stores.metapages` goes back in time. Values have digests of their own; this
is about what leads to them.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import NamedTuple

from lifelong_edit.errors import StoreDamagedError
from lifelong_edit.stores.metapages import NO_PAGE, Meta

_BRANCH, _LEAF, _OVERFLOW = 0x01, 0x02, 0x04
_BIG, _TABLE = 0x01, 0x02
_INTEGER_KEYS = 0x08
_HEADER, _NODE = 16, 8
_PAGE = struct.Struct("<QHHHH")
_NODES = struct.Struct("<HHHH")
_TREE = struct.Struct("<IHHQQQQQ")


class _Tree(NamedTuple):
    """What LMDB notes of a table: 48 bytes in a meta page, or in a node of the main table."""

    pad: int
    flags: int
    depth: int
    branches: int
    leaves: int
    overflows: int
    entries: int
    root: int


class _Wrong(Exception):
    """What is wrong with which page."""


def check_pages(file: Path, page_size: int, meta: Meta) -> None:
    """Walk all tables and the free list of the snapshot of `meta`. Raise StoreDamagedError, naming the page."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        walk = _Walk(descriptor, page_size, meta.last_page)
        walk.tree("the main table", _Tree._make(_TREE.unpack(meta.main)), tables=True)
        free = _Tree._make(_TREE.unpack(meta.free))
        # Of the free list LMDB keeps the size of a page where other tables have nothing.
        walk.tree("the free list", free._replace(pad=0), integers=True)
        walk.free_pages()
    except _Wrong as wrong:
        raise StoreDamagedError(f"{file} has damaged pages: {wrong}; restore the store from a backup") from None
    finally:
        os.close(descriptor)


class _Walk:
    def __init__(self, descriptor: int, size: int, last: int) -> None:
        self._file, self._size, self._last = descriptor, size, last
        self._seen = bytearray(last + 1)
        self._seen[:2] = b"\1\1"
        self._lists: list[bytes] = []
        """The records of the free list."""

    def tree(self, name: str, tree: _Tree, *, tables: bool = False, integers: bool = False) -> None:
        """A table: depth first, counting."""
        if tree.pad or tree.flags != (_INTEGER_KEYS if integers else 0):
            raise _Wrong(f"{name} has flags {tree.flags:#x}")
        self._tables, self._integers = tables, integers
        self._counts = [0, 0, 0, 0]
        found: list[tuple[str, bytes]] = []
        if tree.root != NO_PAGE:
            self._page(tree.root, tree.depth, None, None, found, root=True)
        elif tree.depth:
            raise _Wrong(f"{name} has no root and is {tree.depth} deep")
        if self._counts != [tree.branches, tree.leaves, tree.overflows, tree.entries]:
            raise _Wrong(f"{name} has {self._counts} pages and records, expected {list(tree[3:7])}")
        for table, record in found:
            if len(record) != _TREE.size:
                raise _Wrong(f"the main table has {table!r}, which is no table")
            self.tree(f"table {table!r}", _Tree._make(_TREE.unpack(record)))

    def free_pages(self) -> None:
        """No page is both free and in use, or free twice."""
        for record in self._lists:
            count = int.from_bytes(record[:8], "little")
            if len(record) != 8 * (count + 1):
                raise _Wrong(f"a free list of {count} pages takes {len(record)} bytes")
            for number in struct.unpack_from(f"<{count}Q", record, 8):
                self._take(number, "a free page")

    def _take(self, number: int, what: str) -> None:
        if not 1 < number <= self._last:
            raise _Wrong(f"{what} has the number {number}, of {self._last}")
        if self._seen[number]:
            raise _Wrong(f"page {number} is in use twice")
        self._seen[number] = 1

    def _page(
        self,
        number: int,
        depth: int,
        low: bytes | None,
        high: bytes | None,
        found: list[tuple[str, bytes]],
        *,
        root: bool = False,
    ) -> None:
        """A branch or leaf, with all below it. low, high: its keys are not below the one and below the other."""
        self._take(number, "a page")
        page = os.pread(self._file, self._size, number * self._size)
        kind = _LEAF if depth == 1 else _BRANCH
        own, _, flags, lower, upper = _PAGE.unpack_from(page)
        count = (lower - _HEADER) // 2
        if (own, flags) != (number, kind) or lower % 2 or not _HEADER < lower <= upper <= self._size or depth < 1:
            raise _Wrong(f"page {number} has number {own}, flags {flags:#x} and nodes from {lower} to {upper}")
        if count < 2 and kind == _BRANCH and not root:
            raise _Wrong(f"page {number} is a branch with one way to go")
        self._counts[0 if kind == _BRANCH else 1] += 1
        nodes, used = struct.unpack_from(f"<{count}H", page, _HEADER), 0
        keys: list[bytes] = []
        below: list[int] = []
        for at in nodes:
            key, length, child = self._node(page, number, at, upper, kind, found)
            keys.append(key)
            below.append(child)
            used += length + length % 2
        if used != self._size - upper:
            raise _Wrong(f"the nodes of page {number} take {used} bytes of {self._size - upper}")
        self._in_order(number, kind, keys, low, high)
        if kind == _BRANCH:
            bounds = [low, *keys[1:], high]
            for place, child in enumerate(below):
                self._page(child, depth - 1, bounds[place], bounds[place + 1], found)

    def _in_order(self, number: int, kind: int, keys: list[bytes], low: bytes | None, high: bytes | None) -> None:
        """The first key of a branch stands for all that are smaller than its second, and says nothing."""
        own = keys[1:] if kind == _BRANCH else keys
        bounded = [*([low] if low is not None else []), *own, *([high] if high is not None else [])]
        ordered = [key[::-1] for key in bounded] if self._integers else bounded
        for place in range(1, len(ordered)):
            before, after = ordered[place - 1], ordered[place]
            if before > after or (before == after and not (place == 1 and low is not None and kind == _LEAF)):
                raise _Wrong(f"the keys of page {number} are out of order")

    def _node(
        self, page: bytes, number: int, at: int, upper: int, kind: int, found: list[tuple[str, bytes]]
    ) -> tuple[bytes, int, int]:
        """A node's key, its length in bytes, and of a branch the page below it."""
        if not upper <= at <= self._size - _NODE:
            raise _Wrong(f"page {number} has a node at {at}")
        first, second, flags, width = _NODES.unpack_from(page, at)
        key, start = page[at + _NODE : at + _NODE + width], at + _NODE + width
        if start > self._size:
            raise _Wrong(f"page {number} has a key of {width} bytes at {at}")
        if kind == _BRANCH:
            return key, _NODE + width, first | second << 16 | flags << 32
        self._counts[3] += 1
        size = first | second << 16
        held = 8 if flags == _BIG else size
        if flags not in (0, _BIG, _TABLE) or (flags == _TABLE) != self._tables or start + held > self._size:
            raise _Wrong(f"page {number} has a record of {size} bytes and flags {flags:#x} at {at}")
        if not width or (self._integers and width != 8):
            raise _Wrong(f"page {number} has a key of {width} bytes at {at}")
        value = page[start : start + held]
        if flags == _BIG:
            value = self._big(int.from_bytes(value, "little"), size)
        if self._tables:
            found.append((key.decode("utf-8", "backslashreplace"), value))
        elif self._integers:
            self._lists.append(value)
        return key, _NODE + width + held, 0

    def _big(self, first: int, size: int) -> bytes:
        """A record on pages of its own; read only where it is a free list."""
        head = os.pread(self._file, _HEADER, first * self._size) if first <= self._last else b""
        if len(head) < _HEADER:
            raise _Wrong(f"a record begins on page {first}, of {self._last}")
        own, _, flags, _, _ = _PAGE.unpack(head)
        count = int.from_bytes(head[12:16], "little")  # more than it takes where a longer record stood there before
        if (own, flags) != (first, _OVERFLOW) or not _HEADER + size <= count * self._size <= self._last * self._size:
            raise _Wrong(f"page {first} does not begin a record of {size} bytes")
        for number in range(first, first + count):
            self._take(number, "a record")
        self._counts[2] += count
        return os.pread(self._file, size, first * self._size + _HEADER) if self._integers else b""
