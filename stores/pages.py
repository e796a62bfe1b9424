"""A database file read page by page, trusting no pointer in it. For `fsck`; LMDB itself is not asked.

LMDB follows whatever its pages say: one flipped bit in a length or a page number can make it read beyond the end of
the file, which kills the process with SIGBUS. So the tree is walked here first, with every page number, offset and
length held against the file, each page counted once, and values left where they are until somebody wants their bytes.
The layout is that of LMDB 0.9 (`mdb.c`: MDB_meta, MDB_db, MDB_page, MDB_node), in the machine's byte order.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

_MAGIC, _VERSION = 0xBEEFC0DE, 1
_HEADER = struct.Struct("=QHHHH")
_META = struct.Struct("=IIQQ")
_TREE = struct.Struct("=IHHQQQQQ")
_NODE = struct.Struct("=HHHH")
_TAIL = struct.Struct("=QQ")
_BRANCH, _LEAF, _OVERFLOW, _META_PAGE = 1, 2, 4, 8
_BIG, _TREE_DATA = 1, 2
_NOTHING = (1 << 64) - 1
_PAGE_SIZES = (4096, 8192, 16384, 32768, 65536, 2048, 1024, 512)
_CHUNK = 1 << 20
MAX_DEPTH = 32
"""Of a tree; LMDB's own bound."""


class Problem(NamedTuple):
    """Something in the structure of the file that cannot be. tree: "free pages", "catalogue" or a table's name."""

    tree: str
    page: int
    what: str


class Tree(NamedTuple):
    """Where a tree begins, and what its descriptor says of it."""

    name: str
    depth: int
    entries: int
    root: int


class Meta(NamedTuple):
    """One of the two pages with which the file begins: a committed state of the database."""

    page_size: int
    last_page: int
    transaction: int
    free: Tree
    main: Tree


class Value(NamedTuple):
    """Where in the file a value lies."""

    offset: int
    size: int


class PageFile:
    """The pages of a data file at one of its committed states. Use as a context manager.

    transaction: the state to read, that of an open read transaction; None: the last one. What is found wrong stands in
    `problems`; a part of a tree that cannot be followed is left out. Raises ValueError where no state can be read at
    all, LookupError where that of `transaction` has been overwritten since.
    """

    def __init__(self, file: Path, transaction: int | None = None) -> None:
        self.problems: list[Problem] = []
        self.free = 0
        """Bytes of pages that hold nothing; known after `account`."""
        self._gaps: list[Value] | None = None
        self._fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.size = os.fstat(self._fd).st_size
            metas = self._metas()
            wanted = [m for m in metas if transaction is None or m.transaction == transaction]
            if not metas:
                raise ValueError("neither of its first two pages describes a database")
            if not wanted:
                raise LookupError(f"transaction {transaction} is not the last")
            self.meta = max(wanted, key=lambda meta: meta.transaction)
        except BaseException:
            os.close(self._fd)
            raise
        self.whole = self._is_whole()
        """Whether the file has all its pages; nothing is read where it has not."""
        self._used = bytearray(max(self.meta.last_page + 1, 2)) if self.whole else bytearray()

    def __enter__(self) -> PageFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        os.close(self._fd)

    def read(self, value: Value) -> bytes:
        """A value's bytes."""
        return os.pread(self._fd, value.size, value.offset)

    def chunks(self, value: Value) -> Iterator[bytes]:
        """A value's bytes, at most a MiB at a time."""
        for start in range(0, value.size, _CHUNK):
            yield os.pread(self._fd, min(_CHUNK, value.size - start), value.offset + start)

    # -- the walk

    def tables(self) -> dict[str, Tree]:
        """The tables by name, in the order of their names."""
        found = {}
        for key, value in self._walk(self.meta.main, trees=True):
            name = key.decode("utf-8", "replace")
            if value.size != _TREE.size:
                self.problems.append(Problem("catalogue", 0, f"{name} is no table"))
            else:
                found[name] = self._tree(name, self.read(value))
        return found

    def entries(self, tree: Tree) -> Iterator[tuple[bytes, Value]]:
        """Keys in ascending order, each with where its value lies."""
        return self._walk(tree)

    def account(self) -> None:
        """Walk the list of free pages, and note each page that two hold at once. After all tables were walked."""
        for _, value in self._walk(self.meta.free, ordered=False):
            data = self.read(value)
            pages = struct.unpack(f"={len(data) // 8}Q", data[: len(data) // 8 * 8])
            if not pages or pages[0] > len(pages) - 1:
                self.problems.append(Problem("free pages", value.offset // self.meta.page_size, "a list has no end"))
                continue
            for page in pages[1 : pages[0] + 1]:
                self.free += self.meta.page_size * self._use("free pages", page)

    def gaps(self) -> list[Value]:
        """Where bytes lie that belong to no record: what pages in use have left over, and free pages.

        LMDB writes pages from memory that it uses again, and copies them as they are: there may be anything in there,
        parts of records among it that are gone. Walks all tables, so nothing else may have walked them before.
        """
        self._gaps = []
        for tree in self.tables().values():
            for _ in self.entries(tree):
                pass
        for _ in self._walk(self.meta.free, ordered=False):
            pass
        size = self.meta.page_size
        free = (Value(page * size, size) for page in range(2, self.meta.last_page + 1) if not self._used[page])
        return [gap for gap in (*self._gaps, *free) if gap.size]

    def _leave(self, start: int, end: int) -> None:
        """Note that what lies between is of no record, where somebody wants to know."""
        if self._gaps is not None:
            self._gaps.append(Value(start, end - start))

    def _walk(self, tree: Tree, *, trees: bool = False, ordered: bool = True) -> Iterator[tuple[bytes, Value]]:
        if tree.root == _NOTHING or not self._used:
            return
        if tree.depth > MAX_DEPTH:
            self.problems.append(Problem(tree.name, tree.root, f"the tree is {tree.depth} pages deep"))
            return
        count, last = 0, b""
        stack = [(tree.root, tree.depth)]
        while stack:
            page, depth = stack.pop()
            data = self._page(tree.name, page, _LEAF if depth <= 1 else _BRANCH)
            if data is None:
                continue
            if depth > 1:
                stack += [(child, depth - 1) for child in reversed(self._children(tree.name, page, data))]
                continue
            for key, value in self._leaf(tree.name, page, data, trees=trees):
                if ordered and count and key <= last:
                    self.problems.append(Problem(tree.name, page, "its keys are out of order"))
                count, last = count + 1, key
                yield key, value
        if count != tree.entries:
            self.problems.append(Problem(tree.name, tree.root, f"{count} of {tree.entries} records can be found"))

    def _page(self, tree: str, page: int, kind: int) -> bytes | None:
        """A page of a tree, None where it is not one."""
        if not self._use(tree, page):
            return None
        data = os.pread(self._fd, self.meta.page_size, page * self.meta.page_size)
        number, _, flags, lower, upper = _HEADER.unpack_from(data)
        if number != page or flags & 0x0F != kind:
            self.problems.append(Problem(tree, page, "it is no page of this tree"))
            return None
        if not _HEADER.size <= lower <= upper <= len(data) or lower % 2:
            self.problems.append(Problem(tree, page, "its table of entries does not fit it"))
            return None
        self._leave(page * self.meta.page_size + lower, page * self.meta.page_size + upper)
        return data

    def _use(self, tree: str, page: int, count: int = 1) -> bool:
        """Note that pages are in use, and whether they may be: inside the file, and by nothing else."""
        if page < 2 or count < 1 or page + count > len(self._used):
            self.problems.append(Problem(tree, page, "it lies outside the file"))
            return False
        if any(self._used[page : page + count]):
            self.problems.append(Problem(tree, page, "it is in use twice"))
            return False
        self._used[page : page + count] = b"\1" * count
        return True

    def _offsets(self, data: bytes) -> tuple[int, ...]:
        lower = _HEADER.unpack_from(data)[3]
        return struct.unpack_from(f"={(lower - _HEADER.size) // 2}H", data, _HEADER.size)

    def _children(self, tree: str, page: int, data: bytes) -> list[int]:
        found = []
        for offset in self._offsets(data):
            if offset + _NODE.size > len(data):
                self.problems.append(Problem(tree, page, "an entry lies outside it"))
                continue
            low, high, top, _ = _NODE.unpack_from(data, offset)
            found.append(low | high << 16 | top << 32)
        return found

    def _leaf(self, tree: str, page: int, data: bytes, *, trees: bool) -> Iterator[tuple[bytes, Value]]:
        start = page * self.meta.page_size
        for offset in self._offsets(data):
            low, high, flags, key_size = _NODE.unpack_from(data.ljust(offset + _NODE.size, b"\0"), offset)
            size, at = low | high << 16, offset + _NODE.size + key_size
            inside = 8 if flags & _BIG else size
            if at + inside > len(data) or flags & ~_BIG != (_TREE_DATA if trees else 0):
                self.problems.append(Problem(tree, page, "an entry lies outside it, or is of another kind"))
                continue
            key = data[offset + _NODE.size : at]
            if not flags & _BIG:
                yield key, Value(start + at, size)
                continue
            (first,) = struct.unpack_from("=Q", data, at)
            if self._overflow(tree, first, size):
                yield key, Value(first * self.meta.page_size + _HEADER.size, size)

    def _overflow(self, tree: str, page: int, size: int) -> bool:
        """Whether a value of that size lies in pages of its own from `page` on."""
        count = -(-(_HEADER.size + size) // self.meta.page_size)
        if not self._use(tree, page, count):
            return False
        header = os.pread(self._fd, _HEADER.size, page * self.meta.page_size)
        number, _, flags, low, high = _HEADER.unpack(header)
        if number != page or flags & 0x0F != _OVERFLOW or low | high << 16 < count:
            self.problems.append(Problem(tree, page, "it is not the first page of a large value"))
            return False
        kept, start = low | high << 16, page * self.meta.page_size
        self._used[page + count : page + kept] = b"\1" * (kept - count)
        self._leave(start + _HEADER.size + size, start + kept * self.meta.page_size)
        return True

    # -- where to begin

    def _is_whole(self) -> bool:
        needed = (self.meta.last_page + 1) * self.meta.page_size
        if needed > self.size:
            self.problems.append(Problem("file", self.meta.last_page, f"it has {self.size} of at least {needed} bytes"))
        return needed <= self.size

    def _metas(self) -> list[Meta]:
        first = self._meta(0)
        sizes = _PAGE_SIZES if first is None else (first.page_size,)
        second = next((m for size in sizes if (m := self._meta(size)) is not None and m.page_size == size), None)
        for number, meta in enumerate((first, second)):
            if meta is None:
                self.problems.append(Problem("file", number, "it does not describe a database"))
        return [meta for meta in (first, second) if meta is not None]

    def _meta(self, offset: int) -> Meta | None:
        length = _HEADER.size + _META.size + 2 * _TREE.size + _TAIL.size
        data = os.pread(self._fd, length, offset)
        if len(data) < length:
            return None
        flags = _HEADER.unpack_from(data)[2]
        magic, version, _, _ = _META.unpack_from(data, _HEADER.size)
        if not flags & _META_PAGE or (magic, version) != (_MAGIC, _VERSION):
            return None
        at = _HEADER.size + _META.size
        page_size = _TREE.unpack_from(data, at)[0]
        last, transaction = _TAIL.unpack_from(data, at + 2 * _TREE.size)
        if page_size not in _PAGE_SIZES or last > 1 << 48:
            return None
        free = self._tree("free pages", data[at : at + _TREE.size])
        main = self._tree("catalogue", data[at + _TREE.size : at + 2 * _TREE.size])
        return Meta(page_size, last, transaction, free, main)

    @staticmethod
    def _tree(name: str, data: bytes) -> Tree:
        _, _, depth, _, _, _, entries, root = _TREE.unpack(data)
        return Tree(name, depth, entries, root)
