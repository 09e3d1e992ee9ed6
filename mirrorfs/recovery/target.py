"""The directory a datastore is restored into: empty or absent before, and nobody else's until the restore is done."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from mirrorfs import own_files
from mirrorfs.datastore.blob import check_chunk, check_encryption
from mirrorfs.datastore.errors import DatastoreError
from mirrorfs.datastore.names import CHUNKS_NAME, GroupId, NamespaceId, SnapshotId, chunk_path
from mirrorfs.recovery.errors import RestoreError
from mirrorfs.recovery.files import Files, remove_temporaries_in
from mirrorfs.recovery.marker import MARKER_NAME, Marker, read_marker
from mirrorfs.recovery.ownership import Owner
from mirrorfs.recovery.source import View

CHUNK_DIRECTORIES = 65536
_CHUNK_DIRECTORY_MODE = 0o750
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MAGIC_SIZE = 8
# What mkfs leaves in the root of a fresh ext4 file system: no reason to call that directory used.
_ALLOWED_IN_EMPTY = frozenset({"lost+found"})


class Target:
    """An open, locked target. Every method raises RestoreError; the blocking ones belong into threads."""

    def __init__(self, path: Path, descriptor: int, owner: Owner, marker: Marker, *, is_resumed: bool) -> None:
        """Use `open_target`."""
        self.path = path
        self.is_resumed = is_resumed
        self.files = Files(path, descriptor, owner, settles=is_resumed)
        self._root = descriptor
        self._marker = marker
        self._chunks: int | None = None

    def close(self) -> None:
        """Nothing can be done with it after that."""
        if self._chunks is not None:
            os.close(self._chunks)
            self._chunks = None

    def prepare(self, snapshots: Iterable[SnapshotId]) -> None:
        """Note what is going to be restored, and make `.lock`. What an interrupted restore left of other snapshots is
        removed.
        """
        wanted = frozenset(snapshots)
        abandoned = self._marker.snapshots - wanted
        self._marker = replace(self._marker, snapshots=self._marker.snapshots | wanted)
        self.files.write(MARKER_NAME, self._marker.encode())
        with self.files.explaining("prepare"):
            os.fchmod(self._root, 0o755)
            self.files.give(self._root)
            if self.is_resumed:
                self.files.remove_temporaries()
        for snapshot in sorted(abandoned):
            self.files.remove_snapshot(snapshot)
        self.files.write(".lock", b"")
        with self.files.explaining(CHUNKS_NAME):
            self._chunks = self.files.open_directory(CHUNKS_NAME, _CHUNK_DIRECTORY_MODE)

    def add_namespace(self, namespace: NamespaceId) -> None:
        """Make a namespace."""
        self.files.make_directory(namespace.path)

    def add_group(self, group: GroupId, files: Mapping[str, bytes]) -> None:
        """Make a group with its owner and notes, as far as the bucket has them."""
        self.files.make_directory(group.path)
        for filename, data in files.items():
            self.files.write(f"{group.path}/{filename}", data)

    def begin(self, snapshot: SnapshotId, filenames: Collection[str]) -> None:
        """Begin a snapshot: remove all that an interrupted restore left of it but these files."""
        self.files.keep_only(snapshot, filenames)

    def gone(self, _digests: Iterable[bytes]) -> list[bytes]:
        """Which of these chunks have gone since they were looked at: none, nobody else works in a target."""
        return []

    def complete(self, snapshot: SnapshotId, manifest: bytes) -> None:
        """Put the manifest in place, after everything else of the snapshot."""
        self.files.write(snapshot.manifest_path, manifest)

    def abandon(self, snapshot: SnapshotId) -> None:
        """Remove what was restored of a snapshot."""
        self.files.remove_snapshot(snapshot)

    def write_chunk(self, digest: bytes, data: bytes, *, is_encrypted: bool) -> None:
        """Put a chunk in place, unchecked."""
        name = digest.hex()
        with self.files.explaining(chunk_path(digest)):
            directory = self.files.enter_directory(self._opened_chunks(), name[:4], _CHUNK_DIRECTORY_MODE)
            try:
                self.files.replace(directory, name, data)
            finally:
                os.close(directory)

    def to_look_at(self, digests: Iterable[bytes], *, are_encrypted: bool) -> list[bytes]:
        """Which of these are not there. Those that are were checked: on the way in, or when a restore
        resumed; but perhaps for another backup, so raises BlobError where one is encrypted that must not be, or the
        reverse.
        """
        with self.files.explaining(CHUNKS_NAME):
            chunks = self._opened_chunks()
            return [digest for digest in digests if not _has_chunk(chunks, digest, is_encrypted=are_encrypted)]

    def has_chunk(self, digest: bytes, *, is_encrypted: bool) -> bool:
        """Whether a chunk is there; raises as `to_look_at` does."""
        return not self.to_look_at([digest], are_encrypted=is_encrypted)

    def check_chunk_directories(self, numbers: Iterable[int]) -> int:
        """Read and check the chunks that an interrupted restore left in these directories of `.chunks`;
        removes damaged ones and leftover temporaries. Returns how many chunks are good.
        """
        with self.files.explaining(CHUNKS_NAME):
            chunks = self._opened_chunks()
            return sum(self._check_chunk_directory(chunks, number) for number in numbers)

    def finish(self) -> None:
        """Make all durable and take the mark of an unfinished restore away."""
        self.files.synchronize()
        with self.files.explaining(MARKER_NAME):
            os.unlink(MARKER_NAME, dir_fd=self._root)
            os.fsync(self._root)

    def make_chunk_directories(self) -> None:
        """Make `.chunks` with all its directories; those that chunks have come into meanwhile are there."""
        with self.files.explaining(CHUNKS_NAME):
            names = (f"{number:04x}" for number in range(CHUNK_DIRECTORIES))
            self.files.make_directories(self._opened_chunks(), names, _CHUNK_DIRECTORY_MODE)

    def _check_chunk_directory(self, chunks: int, number: int) -> int:
        directory = self.files.enter_directory(chunks, f"{number:04x}", _CHUNK_DIRECTORY_MODE)
        try:
            # Most are empty when a restore was interrupted early.
            if not os.listdir(directory):
                return 0
            remove_temporaries_in(directory)
            good = 0
            for digest in self.files.tree.chunk_directory(number):
                if _is_good_chunk(self.files.tree.read_chunk(digest), digest):
                    good += 1
                else:
                    os.unlink(digest.hex(), dir_fd=directory)
            return good
        finally:
            os.close(directory)

    def _opened_chunks(self) -> int:
        assert self._chunks is not None, "prepare() comes first"
        return self._chunks


@contextlib.contextmanager
def open_target(path: Path, url: str, owner: Owner, view: View) -> Iterator[Target]:
    """Open the directory to restore into; it is made when it does not exist, and closed at the end of the
    context.

    Nothing is written yet. Raises RestoreError when it is not empty and not what an interrupted restore of
    the same `url` and `view` left, when another restore is running in it, when this process cannot give files to
    `owner`, and when somebody else than root and the owner could lead the restore elsewhere, or change what is in it.
    """
    if os.geteuid() != 0 and owner != Owner(os.geteuid(), os.getegid()):
        raise RestoreError(f"Only root can give files to user {owner.user}; run as root or choose another --owner.")
    descriptor = _open_root(path)
    try:
        _check_own(descriptor, path, owner)
        _lock(descriptor, path)
        marker = marker_in(descriptor, path, Marker(url, view))
        target = Target(path, descriptor, owner, marker or Marker(url, view), is_resumed=marker is not None)
        try:
            yield target
        finally:
            target.close()
    finally:
        os.close(descriptor)


def _open_root(path: Path) -> int:
    try:
        return own_files.open_directory(str(path))
    except own_files.NotOwn as error:
        raise RestoreError(f"Cannot restore into {path}: {error}.") from error
    except OSError as error:
        raise RestoreError(f"Cannot restore into {path}: {error.strerror}.") from error


def _check_own(descriptor: int, path: Path, owner: Owner) -> None:
    """Make sure that nobody but root and the owner of what is restored can put anything into the target."""
    try:
        own_files.check_directory(str(path), descriptor, owners=(owner.user,), groups=(owner.group,))
        own_files.check_file(MARKER_NAME, directory=descriptor, owners=(owner.user,))
    except own_files.NotOwn as error:
        raise RestoreError(f"Cannot restore into {path}: {error}.") from error


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RestoreError(f"Another process is restoring into {path}, or has locked it.") from None


def marker_in(descriptor: int, path: Path, ours: Marker) -> Marker | None:
    """What an interrupted restore of the same has noted in an open directory; None when that is empty.

    Raises RestoreError when it is neither.
    """
    try:
        marker = read_marker(descriptor)
    except ValueError:
        raise RestoreError(f"{MARKER_NAME} in {path} cannot be understood. Restore into an empty directory.") from None
    if marker is None:
        if set(os.listdir(descriptor)) - _ALLOWED_IN_EMPTY:
            raise RestoreError(
                f"{path} is not empty, and not what an interrupted restore left. Restore into an empty directory, or "
                "add what is missing in a datastore with --into."
            )
    elif not marker.is_of_the_same(ours):
        raise RestoreError(
            f"{path} holds an interrupted restore: mirrorfs restore {marker.url} {path}{marker.view.options}. "
            "Go on with that one, or restore into an empty directory."
        )
    return marker


def _has_chunk(chunks: int, digest: bytes, *, is_encrypted: bool) -> bool:
    name = digest.hex()
    try:
        descriptor = os.open(f"{name[:4]}/{name}", _READ_FLAGS, dir_fd=chunks)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        # A link that somebody has planted; the chunk takes its place.
        return False
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return False
        check_encryption(os.read(descriptor, _MAGIC_SIZE), digest, is_encrypted=is_encrypted)
    finally:
        os.close(descriptor)
    return True


def _is_good_chunk(data: bytes, digest: bytes) -> bool:
    try:
        check_chunk(data, digest, content=True)
    except DatastoreError:
        return False
    return True
