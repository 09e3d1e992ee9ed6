"""Adding snapshots to a living datastore, in which a PBS may work at the same time.

A snapshot is put together in a directory of root's that PBS never looks into; chunks are inserted as PBS does. When all
is there, its directory is renamed to its place at once, under the lock that PBS takes for a backup: so nobody ever sees
half a snapshot.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from mirrorfs import own_files
from mirrorfs.datastore.content import Content
from mirrorfs.datastore.names import CHUNKS_NAME, MANIFEST_NAME, GroupId, NamespaceId, SnapshotId
from mirrorfs.datastore.quoting import quoted
from mirrorfs.recovery.chunk_insertion import ChunkInsertion, open_datastore_root
from mirrorfs.recovery.digest_set import DigestSet
from mirrorfs.recovery.errors import GroupBusy, RestoreError, SnapshotRefused
from mirrorfs.recovery.files import DIRECTORY_FLAGS, Files
from mirrorfs.recovery.marker import MARKER_NAME, Marker, read_marker
from mirrorfs.recovery.source import View
from mirrorfs.steps import reach

STAGING_NAME = ".mirrorfs-restore.tmp"
"""PBS skips what begins with a dot, and a mount takes what ends so for a temporary file."""
_LOCK_NAME = ".lock"
_OWNER_NAME = "owner"
_LOCK_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class LivingDatastore:
    """An open datastore to which snapshots are added. Methods raise RestoreError, and what they say; they may block."""

    def __init__(
        self, path: Path, root: int, staging: int, chunks: ChunkInsertion, marker: Marker, *, is_resumed: bool
    ) -> None:
        """Use `open_datastore`."""
        self.path = path
        self.is_resumed = is_resumed
        self.files = Files(path / STAGING_NAME, staging, chunks.owner, settles=is_resumed)
        """What is being put together."""
        self._datastore = Files(path, root, chunks.owner)
        self._root = root
        self._chunks = chunks
        self._marker = marker
        self._lock = _ProcessLock(root)
        # By whether they are encrypted: the chunks that this run has read and found good, or has inserted.
        self._good = {False: DigestSet(), True: DigestSet()}

    def has_snapshot(self, snapshot: SnapshotId) -> bool:
        """Whether the datastore has it already, finished."""
        with self._datastore.explaining(snapshot.path):
            return self._datastore.tree.is_taken(snapshot.manifest_path)

    def prepare(self, snapshots: Iterable[SnapshotId]) -> None:
        """Note what is going to be added, and forget what an interrupted restore had of other snapshots."""
        wanted = frozenset(snapshots)
        abandoned = self._marker.snapshots - wanted
        self._marker = replace(self._marker, snapshots=self._marker.snapshots | wanted)
        self.files.write(MARKER_NAME, self._marker.encode())
        self.files.remove_temporaries()
        for snapshot in sorted(abandoned):
            self.files.remove_snapshot(snapshot)

    def add_namespace(self, namespace: NamespaceId) -> None:
        """Nothing: namespaces come with the snapshots in them."""

    def add_group(self, group: GroupId, files: Mapping[str, bytes]) -> None:
        """Keep owner and notes of a group until its first snapshot is there."""
        for filename, data in files.items():
            self.files.write(f"{group.path}/{filename}", data)

    def begin(self, snapshot: SnapshotId, filenames: Collection[str]) -> None:
        """Begin a snapshot with these files; what an interrupted restore had of it is used, if it is good.

        Raises SnapshotRefused where it cannot be put in its place: nothing has been read for it then.
        """
        self._refuse_other_owner(snapshot.group)
        with self._datastore.explaining(snapshot.path):
            self._refuse_unfinished(snapshot)
        self._lock.try_to_hold()
        self.files.keep_only(snapshot, filenames)

    def to_look_at(self, digests: Iterable[bytes], *, are_encrypted: bool) -> list[bytes]:
        """Which of these chunks this run has not yet found, or made, good."""
        good = self._good[are_encrypted]
        return [digest for digest in digests if digest not in good]

    def has_chunk(self, digest: bytes, *, is_encrypted: bool) -> bool:
        """Whether a chunk is there and good. Raises BlobError where it is encrypted and must not be, or the reverse."""
        with self._datastore.explaining(f"chunk {digest.hex()}"):
            found = self._chunks.use(digest, is_encrypted=is_encrypted)
        if found:
            self._good[is_encrypted].add(digest)
        return found

    def write_chunk(self, digest: bytes, data: bytes, *, is_encrypted: bool) -> None:
        """Put a chunk in place, unchecked."""
        with self._datastore.explaining(f"chunk {digest.hex()}"):
            self._chunks.insert(digest, data)
        self._good[is_encrypted].add(digest)

    def gone(self, digests: Iterable[bytes]) -> list[bytes]:
        """Which of these chunks PBS has removed or put in quarantine since they were looked at; touches the others."""
        self._lock.try_to_hold()
        with self._datastore.explaining(CHUNKS_NAME):
            return [digest for digest in digests if not self._chunks.touch(digest)]

    def complete(self, snapshot: SnapshotId, manifest: bytes) -> None:
        """Put a snapshot of which everything else is there in its place.

        Raises:
            GroupBusy: PBS has the group's lock.
            SnapshotRefused: something else has come to stand there.
        """
        self.files.write(snapshot.manifest_path, manifest)
        reach("into.staged")
        with self._datastore.explaining(snapshot.path):
            self._datastore.synchronize()
            self._chunks.synchronize()
            with self._locked(snapshot.group) as group:
                self._refuse_other_owner(snapshot.group)
                self._refuse_unfinished(snapshot)
                self._settle_group(snapshot.group)
                self._place(snapshot, group, manifest)

    def abandon(self, snapshot: SnapshotId) -> None:
        """Forget what has been put together of a snapshot."""
        self.files.remove_snapshot(snapshot)

    def finish(self) -> None:
        """Make all durable, and take away what was needed on the way."""
        self._datastore.synchronize()
        reach("into.before-finish")
        with self._datastore.explaining(STAGING_NAME):
            shutil.rmtree(STAGING_NAME, dir_fd=self._root)
            os.fsync(self._root)

    def close(self) -> None:
        """Give back the lock on the datastore."""
        self._lock.close()

    @contextlib.contextmanager
    def _locked(self, group: GroupId) -> Iterator[int]:
        """Have a group, made where it is missing, locked as PBS does for a backup in it."""
        directory = self._datastore.open_directory(group.path)
        try:
            try:
                fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise GroupBusy(_busy(group)) from None
            # As PBS does: what is locked may have been removed before it was.
            again = self._datastore.open_directory(group.path)
            try:
                if not os.path.samestat(os.fstat(again), os.fstat(directory)):
                    raise GroupBusy(_busy(group))
            finally:
                os.close(again)
            yield directory
        finally:
            os.close(directory)

    def _settle_group(self, group: GroupId) -> None:
        """Give a group that has no owner yet the owner and notes that it has in the bucket."""
        if self._datastore.read(f"{group.path}/{_OWNER_NAME}") is not None:
            return
        for filename in ("notes", _OWNER_NAME):
            data = self.files.read(f"{group.path}/{filename}")
            if data is not None:
                self._datastore.write(f"{group.path}/{filename}", data)

    def _place(self, snapshot: SnapshotId, group: int, manifest: bytes) -> None:
        staged = self.files.open_directory(snapshot.group.path)
        try:
            reach("into.before-placing")
            os.rename(snapshot.backup_time, snapshot.backup_time, src_dir_fd=staged, dst_dir_fd=group)
        finally:
            os.close(staged)
        reach("into.placed")
        directory = os.open(snapshot.backup_time, DIRECTORY_FLAGS, dir_fd=group)
        try:
            # As PBS at the end of a backup: below a mount, the answer says that all of it is on stable storage.
            self._datastore.replace(directory, MANIFEST_NAME, manifest)
            os.fsync(directory)
        finally:
            os.close(directory)
        os.fsync(group)

    def _refuse_other_owner(self, group: GroupId) -> None:
        path = f"{group.path}/{_OWNER_NAME}"
        here, there = (_owner_in(files.read(path)) for files in (self._datastore, self.files))
        if here and there and here != there:
            raise SnapshotRefused(
                f"its group belongs to {quoted(here)} in the datastore and to {quoted(there)} in the bucket, so it may "
                "be of somebody else. Change the owner in PBS first, or restore into another directory"
            )

    def _refuse_unfinished(self, snapshot: SnapshotId) -> None:
        if not self._datastore.tree.is_taken(snapshot.path):
            return
        if self._datastore.tree.is_taken(snapshot.manifest_path):
            raise SnapshotRefused("it has come to stand in the datastore meanwhile, and is left as it is")
        raise SnapshotRefused(
            "an unfinished backup stands in its place. Wait for that backup, or forget it in PBS; then give the same "
            "command again"
        )


class _ProcessLock:
    """The lock that a process of PBS has on a datastore while it writes a backup: as long as somebody holds it, a PBS
    in another process begins no garbage collection.

    While a garbage collection runs it cannot be had. That one takes nothing that is touched after its beginning.
    """

    def __init__(self, root: int) -> None:
        self._descriptor: int | None = None
        # Not made where it is missing: PBS has to be able to write to it.
        with contextlib.suppress(FileNotFoundError):
            self._descriptor = os.open(_LOCK_NAME, _LOCK_FLAGS, dir_fd=root)
        self._is_held = False

    def try_to_hold(self) -> None:
        """Hold it from now on, if it can be had."""
        if self._descriptor is None or self._is_held:
            return
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return
        self._is_held = True

    def close(self) -> None:
        """Give it back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@contextlib.contextmanager
def open_datastore(path: Path, url: str, view: View) -> Iterator[LivingDatastore]:
    """Open a datastore to add snapshots to it, and close it at the end of the context.

    Nothing is changed in it yet but for a directory of our own. Raises RestoreError when it is no datastore, when
    another restore or heal is at work in it or was interrupted, and when somebody else than root and its owner could
    change what is in it.
    """
    with contextlib.ExitStack() as stack:
        try:
            root, chunks = stack.enter_context(open_datastore_root(path))
            staging = _open_staging(path, root)
            stack.callback(os.close, staging)
            marker = _marker_of(staging, path, Marker(url, view))
        except own_files.NotOwn as error:
            raise RestoreError(f"Cannot restore into {path}: {error}.") from error
        except OSError as error:
            raise RestoreError(f"Cannot restore into {path}: {error.strerror}.") from error
        is_resumed = marker is not None
        datastore = LivingDatastore(path, root, staging, chunks, marker or Marker(url, view), is_resumed=is_resumed)
        stack.callback(datastore.close)
        try:
            yield datastore
        finally:
            # Unless something was begun in it, or it is done.
            with contextlib.suppress(OSError):
                os.rmdir(STAGING_NAME, dir_fd=root)


def _open_staging(path: Path, root: int) -> int:
    with contextlib.suppress(FileExistsError):
        os.mkdir(STAGING_NAME, 0o700, dir_fd=root)
    descriptor = os.open(STAGING_NAME, DIRECTORY_FLAGS, dir_fd=root)
    try:
        own_files.check_directory(str(path / STAGING_NAME), descriptor)
    except own_files.NotOwn:
        os.close(descriptor)
        raise
    return descriptor


def _marker_of(staging: int, path: Path, ours: Marker) -> Marker | None:
    try:
        marker = read_marker(staging)
    except ValueError:
        raise RestoreError(
            f"{STAGING_NAME}/{MARKER_NAME} in {path} cannot be understood. Nothing of PBS is in that directory: remove "
            f"{STAGING_NAME}, then try again."
        ) from None
    if marker is not None and not marker.is_of_the_same(ours):
        raise RestoreError(
            f"{path} holds an interrupted restore: mirrorfs restore {marker.url} --into {path}{marker.view.options}. "
            f"Go on with that one, or remove the directory {STAGING_NAME} in it: nothing of PBS is in there."
        )
    return marker


def _owner_in(data: Content | None) -> str:
    return "" if data is None else bytes(data).decode(errors="replace").strip()


def _busy(group: GroupId) -> str:
    return (
        f"PBS works on the group {group.path} (a backup, a sync, or removing snapshots). Give the same command again "
        "when that is over"
    )
