"""Index files as the server writes and reads them: .fidx through a shared mapping, .didx through a buffer."""

from __future__ import annotations

import os

from tests.harness import formats
from tests.harness.formats import DIGEST_SIZE, INDEX_CSUM_OFFSET, INDEX_HEADER_SIZE, DecodedIndex
from tests.harness.process_lock import ProcessLock
from tests.harness.system_calls import Guard, SystemCalls

_WRITE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_TRUNC
_BUFFER_SIZE = 1024 * 1024


class FixedIndexWriter:
    """Writes PATH.fidx (path is given without the extension). Ends with finish(), drop() or abandon()."""

    def __init__(
        self,
        calls: SystemCalls,
        lock: ProcessLock,
        path: str,
        *,
        uuid: bytes,
        created: int,
        size: int,
        chunk_size: int,
    ) -> None:
        self._calls, self._purpose = calls, "image-index"
        self._temporary, self._final = f"{path}.tmp_fidx", f"{path}.fidx"
        self._length = -(-size // chunk_size) * DIGEST_SIZE
        self._header = formats.fixed_index_header(uuid, created, size, chunk_size)
        self._descriptor = -1
        self._guard: Guard = lock.shared(calls)
        try:
            self._descriptor = calls.open(self._purpose, self._temporary, _WRITE_FLAGS)
            calls.write(self._purpose, self._descriptor, self._header)
            calls.truncate(self._purpose, self._descriptor, INDEX_HEADER_SIZE + self._length)
            self._mapping = calls.map(self._purpose, self._descriptor, self._length, INDEX_HEADER_SIZE, writable=True)
        except BaseException:
            _close_silently(self._take_descriptor())
            self._guard.release()
            raise

    def put(self, slot: int, digest: str) -> None:
        """Store one digest through the mapping; any thread, any order."""
        self._calls.step(self._purpose, "store")
        self._mapping.store(slot * DIGEST_SIZE, bytes.fromhex(digest))

    def finish(self) -> bytes:
        """Checksum through the mapping, munmap, header, rename, and only then close. Gives what the file must
        hold now."""
        calls, purpose = self._calls, self._purpose
        raw = formats.with_index_csum(self._header, self._mapping.contents())
        calls.unmap(purpose, self._mapping)
        _write_csum_and_rename(calls, purpose, self._descriptor, raw, self._temporary, self._final)
        calls.step(purpose, "close")
        os.close(self._take_descriptor())
        self._guard.release()
        return raw

    def drop(self) -> None:
        """The end of an aborted backup, whose files are unlinked already."""
        self._calls.unlink_expecting_nothing(self._purpose, self._temporary)
        self._calls.unmap(self._purpose, self._mapping)
        self._calls.step(self._purpose, "close")
        os.close(self._take_descriptor())
        self._guard.release()

    def abandon(self) -> None:
        """What the kernel does for a killed process."""
        self._mapping.unmap()
        _close_silently(self._take_descriptor())
        self._guard.release()

    def _take_descriptor(self) -> int:
        descriptor, self._descriptor = self._descriptor, -1
        return descriptor


class DynamicIndexWriter:
    """Writes PATH.didx (path is given without the extension). Ends with finish(), drop() or abandon()."""

    def __init__(self, calls: SystemCalls, lock: ProcessLock, path: str, *, uuid: bytes, created: int) -> None:
        self._calls, self._purpose = calls, "archive-index"
        self._temporary, self._final = f"{path}.tmp_didx", f"{path}.didx"
        self._header = formats.dynamic_index_header(uuid, created)
        self._entries = bytearray()
        self._buffer = bytearray(self._header)
        self._guard: Guard = lock.shared(calls)
        try:
            self._descriptor = calls.open(self._purpose, self._temporary, _WRITE_FLAGS)
        except BaseException:
            self._guard.release()
            raise

    def append(self, end: int, digest: str) -> None:
        """Add the chunk that ends at offset end of the archive; in order."""
        entry = formats.dynamic_index_entries([(end, bytes.fromhex(digest))])
        self._entries += entry
        if len(self._buffer) + len(entry) > _BUFFER_SIZE:
            self._flush()
        self._buffer += entry

    def finish(self) -> bytes:
        """Write what is buffered, header, rename, and only then close. Gives what the file must hold now."""
        calls, purpose = self._calls, self._purpose
        self._flush()
        raw = formats.with_index_csum(self._header, bytes(self._entries))
        _write_csum_and_rename(calls, purpose, self._descriptor, raw, self._temporary, self._final)
        self._guard.release()
        calls.step(purpose, "close")
        os.close(self._take_descriptor())
        return raw

    def drop(self) -> None:
        """The end of an aborted backup: what is buffered still goes into the unlinked file."""
        self._calls.unlink_expecting_nothing(self._purpose, self._temporary)
        self._flush()
        self._calls.step(self._purpose, "close")
        os.close(self._take_descriptor())
        self._guard.release()

    def abandon(self) -> None:
        """What the kernel does for a killed process."""
        _close_silently(self._take_descriptor())
        self._guard.release()

    def _flush(self) -> None:
        if self._buffer:
            self._calls.write(self._purpose, self._descriptor, bytes(self._buffer))
            self._buffer.clear()

    def _take_descriptor(self) -> int:
        descriptor, self._descriptor = self._descriptor, -1
        return descriptor


def _close_silently(descriptor: int) -> None:
    if descriptor >= 0:
        os.close(descriptor)


def _write_csum_and_rename(
    calls: SystemCalls, purpose: str, descriptor: int, raw: bytes, temporary: str, final: str
) -> None:
    calls.seek(purpose, descriptor, INDEX_CSUM_OFFSET)
    calls.write(purpose, descriptor, raw[INDEX_CSUM_OFFSET : INDEX_CSUM_OFFSET + DIGEST_SIZE])
    calls.rename(purpose, temporary, final)
    calls.unlink_expecting_nothing(purpose, temporary)


def read_index(calls: SystemCalls, path: str) -> DecodedIndex:
    """Read an index as the server does, its entries through a private mapping. Raises FormatError, OSError."""
    purpose = "index-reader"
    descriptor = calls.open(purpose, path, os.O_RDONLY)
    mapping = None
    try:
        calls.seek(purpose, descriptor, 0)
        size = calls.stat_descriptor(purpose, descriptor).st_size
        raw = calls.read(purpose, descriptor, INDEX_HEADER_SIZE)
        if size > INDEX_HEADER_SIZE:
            mapping = calls.map(purpose, descriptor, size - INDEX_HEADER_SIZE, INDEX_HEADER_SIZE, writable=False)
        if path.endswith(".didx"):
            os.close(descriptor)
            descriptor = -1
        if mapping is not None:
            raw += mapping.contents()
        return formats.decode_index(os.path.basename(path), raw)
    finally:
        if mapping is not None:
            mapping.unmap()
        _close_silently(descriptor)
