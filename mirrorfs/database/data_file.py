"""LMDB's data file read page by page, without LMDB: for whoever only looks, and for what is damaged.

LMDB's own reader writes to the lock file, keeps the writer from using pages again while it reads, stops at the first
fault, and at some kinds of damage ends the process. This one does none of that: it writes nothing, takes no lock,
passes over what cannot be read, and says where that is.

The format is that of LMDB 0.9 (liblmdb/mdb.c, "Page Structures"; MDB_DATA_VERSION 1) on 64-bit little-endian machines.

A file that is being written may be read too. A commit writes its pages elsewhere and then one of the two meta pages.
A page of the picture that commit N left is given back by commit N+1 at the earliest, and used again by N+3 at the
earliest (`mdb_page_alloc` takes pages that were given back before the commit that `mdb_find_oldest` names). So what was
read of picture N is as N left it if, after it was read, the newest commit is N+1 at most. If it is a later one, reading
goes on from the last key in the newest picture.
"""

from __future__ import annotations

import heapq
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mirrorfs.database.errors import DatabaseCorrupt, DatabaseError, UnfinishedDatabase

_MAGIC = 0xBEEFC0DE
_DATA_VERSION = 1
_PAGE_SIZES = (4096, 8192, 16384, 32768, 65536)
_HEADER = struct.Struct("<QHHHH")
_META = struct.Struct("<IIQQ")
_TREE = struct.Struct("<IHHQQQQQ")
_NODE = struct.Struct("<HHHH")
_NUMBER = struct.Struct("<Q")
_FIRST_NODE = _HEADER.size
_MAIN_TREE = _HEADER.size + _META.size + _TREE.size
_COMMIT = _MAIN_TREE + _TREE.size + 8
_META_LENGTH = _COMMIT + 8
_BRANCH, _LEAF, _OVERFLOW = 0x01, 0x02, 0x04
_KINDS = {_BRANCH: "a branch", _LEAF: "a leaf", _OVERFLOW: "an overflow page"}
_KIND_MASK = 0x6F
_IN_OVERFLOW, _IS_TREE = 0x01, 0x02
_NO_PAGE = 0xFFFFFFFFFFFFFFFF
# LMDB's own limit (CURSOR_STACK).
_DEEPEST = 32
# Some seconds. A mount commits once for each system call that it answers, which leaves time enough for a page.
_MOST_PICTURES_WITHOUT_PROGRESS = 10_000
# No value of journal or state comes near; a damaged size must not take all memory.
_LARGEST_VALUE = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class PageDamage:
    """What cannot be read: a page, where it begins in the file, how long the file is (bytes), and what is wrong.

    `after` is the last key that was read before it, None if there was none.
    """

    page: int
    offset: int
    file_length: int
    reason: str
    after: bytes | None

    def __str__(self) -> str:
        """Where it is and what is wrong, as a part of a sentence."""
        return f"page {self.page} (at byte {self.offset} of {self.file_length}) {self.reason}"


Report = Callable[[PageDamage], None]
Belongs = Callable[[bytes, bytes], bool]


class _Overtaken(Exception):
    """The picture that is being read may be overwritten by now."""


class _Unreadable(Exception):
    """A page is not what it must be."""

    def __init__(self, page: int, reason: str) -> None:
        super().__init__(reason)
        self.page = page
        self.reason = reason


@dataclass(frozen=True, slots=True)
class _Tree:
    """Where a B+tree begins, how many levels it has, and how many entries."""

    root: int
    depth: int
    entries: int


@dataclass(frozen=True, slots=True)
class _Picture:
    """What one commit left: its number, and the tree that names the databases."""

    commit: int
    main: _Tree


class DataFile:
    """One data file, open for reading, from several threads; `close` it."""

    def __init__(self, path: str) -> None:
        """Open the file.

        Raises:
            UnfinishedDatabase: it is empty: whoever made it was killed meanwhile.
            DatabaseCorrupt: it has no readable meta page.
            DatabaseError: it cannot be opened or read.
        """
        self.path = path
        self._stray_pages: list[tuple[bytes, int]] | None = None
        try:
            # A copy may be anybody's. A pipe in its place is not waited for: it is empty.
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise DatabaseError(f"cannot open {path}: {error.strerror}") from error
        try:
            if self.length == 0:
                raise UnfinishedDatabase(f"{path} is empty: whoever began it did not come to write anything")
            self._page_size = self._find_page_size()
        except OSError as error:
            self.close()
            raise DatabaseError(f"cannot read {path}: {error.strerror}") from error
        except DatabaseError:
            self.close()
            raise

    @property
    def length(self) -> int:
        """Length of the file in bytes."""
        return os.fstat(self._descriptor).st_size

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def names(self, report: Report) -> list[bytes]:
        """Return the names of the databases that can be found."""
        return [name for name, _ in self._retried(lambda picture, after: self._catalog(picture, after, report))]

    def entries(self, database: bytes, report: Report) -> int:
        """Return how many entries a database is to have, 0 if it cannot be found."""
        for _ in range(_MOST_PICTURES_WITHOUT_PROGRESS):
            try:
                tree = self._tree(self._pictures()[0], database, report)
            except _Overtaken:
                continue
            return 0 if tree is None else tree.entries
        raise self._too_busy()

    def get(self, database: bytes, key: bytes, report: Report) -> bytes | None:
        """Return the value of a key, None if there is none or if it cannot be read."""
        for found, value in self.items(database, report, first=key):
            return value if found == key else None
        return None

    def items(
        self, database: bytes, report: Report, *, first: bytes = b"", belongs: Belongs | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield the entries of a database whose keys are not less than `first`, in the order of their keys.

        What cannot be read is told to `report`, each page once, and passed over. The file may be written meanwhile:
        each entry is as some commit since the call has left it.

        With `belongs`, which tells an entry of this database from others, what stands below or on an unreadable page is
        looked for on all pages of the file, also on those that an earlier commit has left, so that entries may be found
        that have been deleted or changed since; and if it is the first page of all, what comes after the last entry of
        the commit before.

        Raises:
            DatabaseError: the disk fails, or the file changes faster than it can be read.
        """
        told: set[int] = set()

        def tell(damage: PageDamage) -> None:
            if damage.page not in told:
                told.add(damage.page)
                report(damage)

        return self._retried(lambda picture, after: self._entries(picture, database, first, after, tell, belongs))

    # --- pictures

    def _retried(
        self, read: Callable[[_Picture, bytes | None], Iterator[tuple[bytes, bytes]]]
    ) -> Iterator[tuple[bytes, bytes]]:
        """Read in the newest picture, and go on after the last key in a newer one whenever that is overtaken."""
        last: bytes | None = None
        fruitless = 0
        while True:
            try:
                for key, value in read(self._pictures()[0], last):
                    last, fruitless = key, 0
                    yield key, value
            except _Overtaken:
                fruitless += 1
                if fruitless > _MOST_PICTURES_WITHOUT_PROGRESS:
                    raise self._too_busy() from None
            except OSError as error:
                raise DatabaseError(f"cannot read {self.path}: {error.strerror}") from error
            else:
                return

    def _too_busy(self) -> DatabaseError:
        return DatabaseError(f"{self.path} changes faster than it can be read: try again, or read a copy of it")

    def _find_page_size(self) -> int:
        head = self._pread(_META_LENGTH, 0)
        if _is_meta(head):
            size = int(_TREE.unpack_from(head, _HEADER.size + _META.size)[0])
            if size in _PAGE_SIZES:
                return size
        # The second meta page is as good, and stands where the first one ends.
        for size in _PAGE_SIZES:
            meta = self._pread(_META_LENGTH, size)
            if _is_meta(meta) and _TREE.unpack_from(meta, _HEADER.size + _META.size)[0] == size:
                return size
        raise DatabaseCorrupt(
            f"{self.path} ({self.length} bytes) is not a database of LMDB, or both pages at its beginning that say "
            "where everything is are damaged: nothing of it can be read",
            os.path.dirname(self.path),
        )

    def _pictures(self) -> list[_Picture]:
        """The newest picture, and the one before it if its meta page is readable."""
        metas = (self._pread(_META_LENGTH, offset) for offset in (0, self._page_size))
        pictures = [
            _Picture(_NUMBER.unpack_from(meta, _COMMIT)[0], _parse_tree(meta, _MAIN_TREE))
            for meta in metas
            if _is_meta(meta)
        ]
        if not pictures:
            raise DatabaseCorrupt(f"{self.path} has no readable meta page any more", os.path.dirname(self.path))
        return sorted(pictures, key=lambda picture: picture.commit, reverse=True)

    def _catalog(self, picture: _Picture, after: bytes | None, report: Report) -> Iterator[tuple[bytes, bytes]]:
        yield from self._walk(picture, picture.main, b"", after, report, subtrees=True)

    def _tree(self, picture: _Picture, database: bytes, report: Report) -> _Tree | None:
        for name, value in self._walk(picture, picture.main, database, None, report, subtrees=True):
            return _parse_tree(value, 0) if name == database and len(value) == _TREE.size else None
        return None

    def _entries(
        self,
        picture: _Picture,
        database: bytes,
        first: bytes,
        after: bytes | None,
        report: Report,
        belongs: Belongs | None,
    ) -> Iterator[tuple[bytes, bytes]]:
        faults: list[PageDamage] = []
        for candidate in (picture, *self._older_than(picture)):
            tree = self._tree(candidate, database, faults.append)
            if tree is None or (tree.root != _NO_PAGE and not self._has_root(candidate, tree, faults.append)):
                # What the commit before it left is nearly as good.
                continue
            for fault in faults:
                report(fault)
            for key, value in self._walk(candidate, tree, first, after, report, belongs):
                after = key
                yield key, value
            break
        else:
            for fault in faults:
                report(fault)
        if faults and belongs is not None:
            yield from self._strays(first, after, None, belongs)

    def _older_than(self, picture: _Picture) -> list[_Picture]:
        return [other for other in self._pictures() if other.commit == picture.commit - 1]

    def _has_root(self, picture: _Picture, tree: _Tree, report: Report) -> bool:
        try:
            self._page(picture, tree.root, _LEAF if tree.depth == 1 else _BRANCH)
        except _Unreadable as fault:
            report(self._damage(fault, None))
            return False
        return True

    # --- pages

    def _walk(
        self,
        picture: _Picture,
        tree: _Tree,
        first: bytes,
        after: bytes | None,
        report: Report,
        belongs: Belongs | None = None,
        *,
        subtrees: bool = False,
    ) -> Iterator[tuple[bytes, bytes]]:
        if tree.root == _NO_PAGE:
            return
        last = after
        visited = bytearray(self.length // self._page_size // 8 + 1)
        waiting: list[tuple[int, int, bytes | None]] = [(tree.root, 1, None)]
        begun = False
        while waiting:
            number, level, end = waiting.pop()
            try:
                if level > _DEEPEST or _mark(visited, number):
                    raise _Unreadable(number, "is used twice")
                page = self._page(picture, number, _LEAF if level == tree.depth else _BRANCH)
                if level < tree.depth:
                    children = _children(number, page, first if last is None else max(first, last), end)
                    waiting.extend((child, level + 1, until) for child, until in reversed(children))
                    continue
                for key, value in self._leaf(picture, number, page, subtrees=subtrees):
                    if key < first or (last is not None and key <= last):
                        if begun:
                            raise _Unreadable(number, "has keys that belong elsewhere")
                        continue
                    last = key
                    yield key, value
                begun = True
            except _Unreadable as fault:
                report(self._damage(fault, last))
                if belongs is not None:
                    for key, value in self._strays(first, last, end, belongs):
                        last = key
                        yield key, value

    def _strays(
        self, first: bytes, after: bytes | None, end: bytes | None, belongs: Belongs
    ) -> Iterator[tuple[bytes, bytes]]:
        """Entries with keys beyond `after` and before `end` on any page, whether it is in use or not."""
        if self._stray_pages is None:
            self._stray_pages = sorted(self._find_stray_pages(belongs))
        nearby: list[tuple[bytes, bytes]] = []
        last = after
        for page_first, number in [*self._stray_pages, (None, -1)]:
            while nearby and (page_first is None or nearby[0][0] < page_first):
                key, value = heapq.heappop(nearby)
                if key >= first and (last is None or key > last) and (end is None or key < end):
                    last = key
                    yield key, value
            if page_first is None or (end is not None and page_first >= end):
                continue
            for entry in self._entries_of_stray(number, belongs):
                heapq.heappush(nearby, entry)

    def _find_stray_pages(self, belongs: Belongs) -> Iterator[tuple[bytes, int]]:
        for number in range(2, self.length // self._page_size):
            entries = self._entries_of_stray(number, belongs)
            if entries:
                yield entries[0][0], number

    def _entries_of_stray(self, number: int, belongs: Belongs) -> list[tuple[bytes, bytes]]:
        """What stands on a page, if it is a whole leaf of entries that belong here."""
        picture = self._pictures()[0]
        try:
            entries = list(self._leaf(picture, number, self._page(picture, number, _LEAF), subtrees=False))
        except (_Unreadable, _Overtaken):
            return []
        return entries if all(belongs(key, value) for key, value in entries) else []

    def _leaf(self, picture: _Picture, number: int, page: bytes, *, subtrees: bool) -> Iterator[tuple[bytes, bytes]]:
        for pointer in _pointers(number, page):
            low, high, flags, key_size = _NODE.unpack_from(page, pointer)
            begin, size = pointer + _NODE.size + key_size, low | high << 16
            key = page[pointer + _NODE.size : begin]
            if bool(flags & _IS_TREE) is not subtrees:
                raise _Unreadable(number, "has entries of a kind that does not belong there")
            if flags & _IN_OVERFLOW:
                if begin + _NUMBER.size > len(page):
                    raise _Unreadable(number, "has an entry that leaves the page")
                value = self._overflow(picture, _NUMBER.unpack_from(page, begin)[0], size)
            else:
                value = page[begin : begin + size]
                if len(value) != size:
                    raise _Unreadable(number, "has an entry that leaves the page")
            yield key, value

    def _overflow(self, picture: _Picture, number: int, size: int) -> bytes:
        page = self._page(picture, number, _OVERFLOW)
        pages = int.from_bytes(page[12:16], "little")
        if _FIRST_NODE + size > pages * self._page_size:
            raise _Unreadable(number, f"holds {pages} pages, too few for a value of {size} bytes")
        if size > _LARGEST_VALUE:
            raise _Unreadable(number, f"is to hold a value of {size} bytes, which is too much to be true")
        value = self._pread(size, number * self._page_size + _FIRST_NODE)
        self._check_picture(picture)
        if len(value) != size:
            raise _Unreadable(number, "is cut off")
        return value

    def _page(self, picture: _Picture, number: int, kind: int) -> bytes:
        if number > self.length // self._page_size:
            self._check_picture(picture)
            raise _Unreadable(number, "lies behind the end of the file")
        page = self._pread(self._page_size, number * self._page_size)
        self._check_picture(picture)
        if len(page) != self._page_size:
            raise _Unreadable(number, "is cut off" if page else "lies behind the end of the file")
        own_number, _, flags, _, _ = _HEADER.unpack_from(page)
        if own_number != number:
            what = "is empty" if not any(page) else f"says of itself that it is page {own_number}"
            raise _Unreadable(number, what)
        if flags & _KIND_MASK != kind:
            raise _Unreadable(number, f"is not {_KINDS[kind]}, as it must be (flags 0x{flags:x})")
        return page

    def _check_picture(self, picture: _Picture) -> None:
        for offset in (0, self._page_size):
            meta = self._pread(_META_LENGTH, offset)
            if _NUMBER.unpack_from(meta, _COMMIT)[0] > picture.commit + 1 and _is_meta(meta):
                raise _Overtaken

    def _damage(self, fault: _Unreadable, last: bytes | None) -> PageDamage:
        return PageDamage(fault.page, fault.page * self._page_size, self.length, fault.reason, last)

    def _pread(self, size: int, offset: int) -> bytes:
        return os.pread(self._descriptor, size, offset) if offset < 1 << 62 else b""


def _is_meta(page: bytes) -> bool:
    if len(page) < _META_LENGTH:
        return False
    magic, version, _, _ = _META.unpack_from(page, _HEADER.size)
    return bool(magic == _MAGIC and version == _DATA_VERSION)


def _parse_tree(data: bytes, offset: int) -> _Tree:
    _, _, depth, _, _, _, entries, root = _TREE.unpack_from(data, offset)
    return _Tree(root, depth, entries)


def _pointers(number: int, page: bytes) -> tuple[int, ...]:
    """Where the nodes of a page begin, all checked to lie in it with their keys."""
    _, _, _, lower, upper = _HEADER.unpack_from(page)
    if not _FIRST_NODE <= lower <= upper <= len(page) or lower % 2:
        raise _Unreadable(number, "has a damaged header")
    pointers: tuple[int, ...] = struct.unpack_from(f"<{(lower - _FIRST_NODE) // 2}H", page, _FIRST_NODE)
    for pointer in pointers:
        if not upper <= pointer <= len(page) - _NODE.size:
            raise _Unreadable(number, "has an entry that leaves the page")
        if pointer + _NODE.size + _NODE.unpack_from(page, pointer)[3] > len(page):
            raise _Unreadable(number, "has an entry that leaves the page")
    return pointers


def _children(number: int, page: bytes, first: bytes, end: bytes | None) -> list[tuple[int, bytes | None]]:
    """The pages below a branch that may hold keys from `first` on, each with the key before which it ends."""
    pointers = _pointers(number, page)
    children = []
    for index, pointer in enumerate(pointers):
        until = end
        if index + 1 < len(pointers):
            following = pointers[index + 1]
            size = _NODE.unpack_from(page, following)[3]
            until = page[following + _NODE.size : following + _NODE.size + size]
            if until <= first:
                continue
        low, high, flags, _ = _NODE.unpack_from(page, pointer)
        children.append((low | high << 16 | flags << 32, until))
    return children


def _mark(visited: bytearray, number: int) -> bool:
    """Tell whether a page has been visited before; from now on it has. One that cannot be there never has."""
    index = number >> 3
    if index >= len(visited):
        return False
    before = bool(visited[index] >> (number & 7) & 1)
    visited[index] |= 1 << (number & 7)
    return before
