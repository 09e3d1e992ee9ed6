"""What a disk holds through a loss of power: durable content, and a volatile cache of the writes since the last
flush, of which a cut keeps whatever it likes."""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from random import Random
from typing import BinaryIO

SECTOR = 512
"""Bytes that a disk writes in one piece: NVMe and SATA promise no more than one logical sector."""

_SUPERBLOCK_END = 4096
_CACHE_BYTES = 128 * 1024 * 1024


class Survivors(StrEnum):
    """Which of the writes since the last flush are on the disk after the power came back."""

    NONE = "none"
    ALL = "all"
    PREFIX = "prefix"
    """The oldest ones, up to any; the next may be torn."""
    SUBSET = "subset"
    """Any of them, since a disk writes in the order that suits it; one of the others may be torn."""


@dataclass(frozen=True, slots=True)
class PowerCut:
    """What a cut did to the writes since the last flush. A torn write is lost; its lost part counts in bytes."""

    lost_writes: int
    kept_writes: int
    lost_bytes: int
    survivors: Survivors


@dataclass(frozen=True, slots=True)
class CachedWrite:
    """A write that the disk has confirmed and no flush has made durable."""

    offset: int
    data: bytes

    def part(self, start: int, end: int) -> CachedWrite:
        return CachedWrite(self.offset + start, self.data[start:end])


class Medium:
    """The content of a disk, twice: as its reader sees it, and as it is without the volatile cache.

    The cache holds up to `cache_bytes`; beyond that the oldest writes become durable by themselves, as in a disk.
    Both files have no name and end with the process.
    """

    def __init__(self, directory: Path, size: int, *, cache_bytes: int = _CACHE_BYTES) -> None:
        """Raises OSError."""
        self._seen = _sparse_file(directory, size)
        self._durable = _sparse_file(directory, size)
        self._cache: deque[CachedWrite] = deque()
        self._cached_bytes = 0
        self._cache_bytes = cache_bytes

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._seen.fileno(), size, offset)

    def write(self, offset: int, data: bytes) -> None:
        _write_all(self._seen, offset, data)
        self._cache.append(CachedWrite(offset, data))
        self._cached_bytes += len(data)
        while self._cached_bytes > self._cache_bytes:
            self._make_oldest_durable()

    def flush(self) -> None:
        """Make every write so far durable."""
        while self._cache:
            self._make_oldest_durable()

    def _make_oldest_durable(self) -> None:
        oldest = self._cache.popleft()
        self._cached_bytes -= len(oldest.data)
        _write_all(self._durable, oldest.offset, oldest.data)

    def cut(self, survivors: Survivors, random: Random) -> PowerCut:
        """Lose the cache but for what survives, and show what is durable from now on."""
        cached = list(self._cache)
        kept, torn = choose(cached, survivors, random)
        for write in (*kept, *torn):
            _write_all(self._durable, write.offset, write.data)
        self._forget_cache()
        lost_bytes = sum(len(write.data) for write in cached) - sum(len(write.data) for write in (*kept, *torn))
        return PowerCut(len(cached) - len(kept), len(kept), lost_bytes, survivors)

    def _forget_cache(self) -> None:
        for write in self._cache:
            durable = os.pread(self._durable.fileno(), len(write.data), write.offset)
            _write_all(self._seen, write.offset, durable)
        self._cache.clear()
        self._cached_bytes = 0

    def close(self) -> None:
        self._seen.close()
        self._durable.close()


def choose(
    cached: Sequence[CachedWrite], survivors: Survivors, random: Random
) -> tuple[list[CachedWrite], list[CachedWrite]]:
    """The writes that are kept whole, in their order, and the kept part of one that is torn, if any is."""
    if survivors is Survivors.NONE:
        return [], []
    if survivors is Survivors.ALL:
        return list(cached), []
    if survivors is Survivors.PREFIX:
        end = random.randint(0, len(cached))
        return list(cached[:end]), _perhaps_torn(cached[end : end + 1], random)
    share = random.random()
    is_kept = [random.random() < share for _ in cached]
    kept = [write for write, keep in zip(cached, is_kept, strict=True) if keep]
    lost = [write for write, keep in zip(cached, is_kept, strict=True) if not keep]
    return kept, _perhaps_torn(lost, random)


def _perhaps_torn(lost: Sequence[CachedWrite], random: Random) -> list[CachedWrite]:
    if not lost or random.random() < 0.5:
        return []
    write = random.choice(lost)
    sectors = len(write.data) // SECTOR
    # ext4 writes its superblock in place and has no second chance at it: disks with this file system on them live
    # because their physical sector is 4 KiB.
    if sectors < 2 or write.offset < _SUPERBLOCK_END:
        return []
    tear = random.randrange(1, sectors) * SECTOR
    return [write.part(0, tear) if random.random() < 0.5 else write.part(tear, len(write.data))]


def _sparse_file(directory: Path, size: int) -> BinaryIO:
    # Closed by Medium.close().
    file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115
    os.ftruncate(file.fileno(), size)
    return file


def _write_all(file: BinaryIO, offset: int, data: bytes) -> None:
    rest = memoryview(data)
    while len(rest):
        written = os.pwrite(file.fileno(), rest, offset)
        rest, offset = rest[written:], offset + written
