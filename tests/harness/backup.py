"""One backup, from the group's lock to syncfs, call by call as recorded: first, incremental and aborted ones."""

from __future__ import annotations

import hashlib
import os
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Literal

from tests.harness import formats
from tests.harness.content import ArchivePlan, BackupContent, BlobPlan, ChunkRecipe, Encoder, ImagePlan
from tests.harness.formats import MANIFEST_NAME, ManifestFile
from tests.harness.index_files import DynamicIndexWriter, FixedIndexWriter, read_index
from tests.harness.names import GroupName, SnapshotName, parse_snapshot_time
from tests.harness.store import Store

AbortStage = Literal["indexing", "between manifests"]
IndexWriter = FixedIndexWriter | DynamicIndexWriter


class BackupRefused(Exception):
    """The server would have refused: the snapshot exists, somebody holds a lock, another owner."""


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file of a snapshot: its line in the manifest, the SHA-256 of the whole file, the digests it references."""

    listed: ManifestFile
    sha256: str
    digests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WrittenSnapshot:
    """What a backup left behind, for assertions. path is relative to the datastore; inserted and touched are
    the digests of chunks written anew and of chunks found there (chunks known from the previous snapshot are
    in neither: they are only named in the index). manifest is the manifest file's last content."""

    name: SnapshotName
    path: str
    owner: str
    is_encrypted: bool
    files: tuple[WrittenFile, ...]
    inserted: frozenset[str]
    touched: frozenset[str]
    manifest: bytes

    @property
    def chunks(self) -> frozenset[str]:
        """All digests that the snapshot references."""
        return frozenset(digest for file in self.files for digest in file.digests)


@dataclass(frozen=True, slots=True)
class BackupOrder:
    """What to back up where. threads: how many insert chunks at once. abort: where the client goes away."""

    snapshot: SnapshotName
    content: BackupContent
    encoder: Encoder
    owner: str = "root@pam"
    threads: int = 1
    abort: AbortStage | None = None


class _Aborted(Exception):
    """The client has gone; unwinds to where the server removes the snapshot."""


@dataclass(slots=True)
class _Statistics:
    """What the server counts of a backup's uploads, and which digests it has seen."""

    known: set[str] = field(default_factory=set)
    inserted: set[str] = field(default_factory=set)
    touched: set[str] = field(default_factory=set)
    count: int = 0
    size: int = 0
    compressed_size: int = 0
    mutex: threading.Lock = field(default_factory=threading.Lock)

    def take(self, digest: str, size: int) -> bool:
        """Whether this chunk has to be sent; counts it."""
        with self.mutex:
            self.count += 1
            self.size += size
            is_new = digest not in self.known
            self.known.add(digest)
            return is_new

    def as_manifest_entry(self) -> dict[str, int]:
        return {
            "compressed_size": self.compressed_size,
            "count": self.count,
            "duplicates": self.count - len(self.inserted),
            "size": self.size,
        }


def run_backup(store: Store, order: BackupOrder) -> WrittenSnapshot | None:
    """Do one backup. None when it was ordered to be aborted. Raises BackupRefused, DatastoreBusy, OSError."""
    return _Backup(store, order).run()


class _Backup:
    def __init__(self, store: Store, order: BackupOrder) -> None:
        self._store, self._calls, self._order = store, store.calls, order
        self._snapshot = order.snapshot
        self._path = store.at(order.snapshot.path)
        self._statistics = _Statistics()
        self._open_indexes: list[IndexWriter] = []
        self._files: list[WrittenFile] = []
        self._folders: list[int] = []

    def run(self) -> WrittenSnapshot | None:
        try:
            return self._run_locked()
        except _Aborted:
            self._remove_aborted_snapshot()
            return None
        finally:
            for index in self._open_indexes:
                index.abandon()
            for descriptor in reversed(self._folders):
                os.close(descriptor)

    def _run_locked(self) -> WrittenSnapshot:
        self._lock_group()
        previous = self._lock_previous_snapshot()
        self._make_and_lock_snapshot()
        known_files = self._read_previous_manifest(previous)
        for blob in self._order.content.plan.blobs:
            self._upload_blob(blob)
        self._upload_archives(previous, known_files)
        manifest = self._upload_manifests(previous)
        self._store.sync_file_system()
        self._close_folders()
        return WrittenSnapshot(
            name=self._snapshot,
            path=self._snapshot.path,
            owner=self._order.owner,
            is_encrypted=self._order.encoder.key is not None,
            files=tuple(self._files),
            inserted=frozenset(self._statistics.inserted),
            touched=frozenset(self._statistics.touched),
            manifest=manifest,
        )

    # -- the group, its owner, the snapshot before ---------------------------------------------------------

    def _lock_group(self) -> None:
        calls, group = self._calls, self._snapshot.group
        group_path = self._store.at(group.path)
        calls.stat("group", self._store.path)
        try:
            for directory in (os.path.dirname(group_path), group_path):
                if not calls.make_directory("group", directory):
                    calls.stat("group", directory)
        except FileNotFoundError as error:
            raise BackupRefused(f"there is no namespace {group.namespace}") from error
        try:
            self._folders.append(calls.lock_folder("group", group_path))
        except BlockingIOError as error:
            raise BackupRefused(f"somebody has the lock of {group.path}") from error
        self._settle_owner(f"{group_path}/owner")

    def _settle_owner(self, path: str) -> None:
        """A group's first owner file comes to be directly under its final name, in two writes."""
        calls = self._calls
        with suppress(FileExistsError):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with calls.closing("owner", calls.open("owner", path, flags)) as descriptor:
                calls.write("owner", descriptor, self._order.owner.encode())
                calls.write("owner", descriptor, b"\n")
        owner = calls.read_file("owner", path).decode().rstrip("\n")
        if owner != self._order.owner:
            raise BackupRefused(f"{self._snapshot.group.path} belongs to {owner}")

    def _lock_previous_snapshot(self) -> SnapshotName | None:
        previous = last_finished_snapshot(self._store, self._snapshot.group)
        if previous is not None:
            try:
                folder = self._calls.lock_folder("previous-snapshot", self._store.at(previous.path), shared=True)
            except BlockingIOError as error:
                raise BackupRefused(f"somebody removes {previous.path}") from error
            self._folders.append(folder)
        return previous

    def _make_and_lock_snapshot(self) -> None:
        if not self._calls.make_directory("snapshot", self._path):
            raise BackupRefused(f"{self._snapshot.path} exists")
        self._folders.append(self._calls.lock_folder("snapshot", self._path))

    def _read_previous_manifest(self, previous: SnapshotName | None) -> frozenset[str]:
        """The client gets the previous manifest too, to see which indexes it may ask for."""
        if previous is None:
            return frozenset()
        raw = self._calls.read_file("previous-manifest", f"{self._store.at(previous.path)}/{MANIFEST_NAME}")
        return frozenset(file.name for file in formats.manifest_files(raw))

    # -- uploads -------------------------------------------------------------------------------------------

    def _upload_blob(self, blob: BlobPlan) -> None:
        encoder = self._order.encoder
        raw = encoder.encode(self._order.content.blob(blob))
        name = f"{blob.name}.blob"
        self._store.replace("blob", f"{self._snapshot.path}/{name}", raw)
        sha256 = hashlib.sha256(raw).hexdigest()
        listed = ManifestFile(name, len(raw), sha256, encoder.crypt_mode)
        self._files.append(WrittenFile(listed, sha256, ()))

    def _upload_archives(self, previous: SnapshotName | None, known_files: frozenset[str]) -> None:
        """The catalog's index stays open from the first archive to the last, as the recorded client has it."""
        plan = self._order.content.plan
        catalogs = [archive for archive in plan.archives if archive.name.startswith("catalog.")]
        others = [archive for archive in plan.archives if archive not in catalogs]
        with ThreadPoolExecutor(self._order.threads, initializer=self._store.identity.assume) as pool:
            try:
                writers = [(catalog, self._open_dynamic_index(catalog)) for catalog in catalogs]
                for archive in others:
                    self._learn_previous_index(previous, f"{archive.name}.didx", known_files)
                    self._upload_archive(pool, archive, self._open_dynamic_index(archive))
                for image in plan.images:
                    self._learn_previous_index(previous, f"{image.name}.fidx", known_files)
                    self._upload_image(pool, image)
                for catalog, writer in writers:
                    self._upload_archive(pool, catalog, writer)
                if self._order.abort == "indexing":
                    raise _Aborted
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _learn_previous_index(self, previous: SnapshotName | None, name: str, known_files: frozenset[str]) -> None:
        """The server maps the previous index; the client gets it whole and will not send what it names."""
        if previous is None or name not in known_files:
            return
        path = f"{self._store.at(previous.path)}/{name}"
        index = read_index(self._calls, path)
        self._calls.read_file("previous-index", path)
        self._statistics.known.update(index.digests)

    def _open_dynamic_index(self, archive: ArchivePlan) -> DynamicIndexWriter:
        writer = DynamicIndexWriter(
            self._calls,
            self._store.lock,
            f"{self._path}/{archive.name}",
            uuid=self._order.content.identifier(archive.name),
            created=self._snapshot.time,
        )
        self._open_indexes.append(writer)
        return writer

    def _upload_archive(self, pool: ThreadPoolExecutor, archive: ArchivePlan, writer: DynamicIndexWriter) -> None:
        recipes = self._order.content.archive_chunks(archive)
        digests = list(pool.map(self._upload_chunk, recipes))
        for recipe, digest in zip(recipes, digests, strict=True):
            writer.append(recipe.end, digest)
        is_last = not self._order.content.plan.images and archive == self._order.content.plan.archives[-1]
        if is_last and self._order.abort == "indexing":
            raise _Aborted
        self._finish_index(writer, f"{archive.name}.didx", archive.size, digests)

    def _upload_image(self, pool: ThreadPoolExecutor, image: ImagePlan) -> None:
        writer = FixedIndexWriter(
            self._calls,
            self._store.lock,
            f"{self._path}/{image.name}",
            uuid=self._order.content.identifier(image.name),
            created=self._snapshot.time,
            size=image.size,
            chunk_size=image.chunk_size,
        )
        self._open_indexes.append(writer)
        recipes = self._order.content.image_chunks(image)
        digests = [""] * len(recipes)

        def upload(recipe: ChunkRecipe) -> None:
            digests[recipe.slot] = self._upload_chunk(recipe)
            writer.put(recipe.slot, digests[recipe.slot])

        shuffled = list(recipes)
        random.Random(self._order.content.identifier(image.name + " order")).shuffle(shuffled)
        list(pool.map(upload, shuffled))
        if self._order.abort == "indexing":
            raise _Aborted
        self._finish_index(writer, f"{image.name}.fidx", image.size, digests)

    def _finish_index(self, writer: IndexWriter, name: str, size: int, digests: Sequence[str]) -> None:
        raw = writer.finish()
        self._open_indexes.remove(writer)
        csum = hashlib.sha256(raw[formats.INDEX_HEADER_SIZE :]).hexdigest()
        listed = ManifestFile(name, size, csum, self._order.encoder.crypt_mode)
        self._files.append(WrittenFile(listed, hashlib.sha256(raw).hexdigest(), tuple(digests)))

    def _upload_chunk(self, recipe: ChunkRecipe) -> str:
        content = recipe.content()
        encoder, statistics = self._order.encoder, self._statistics
        digest = encoder.digest(content)
        if statistics.take(digest, len(content)):
            chunk = encoder.encode_chunk(content)
            outcome = self._store.insert_chunk(chunk)
            with statistics.mutex:
                (statistics.inserted if outcome == "inserted" else statistics.touched).add(digest)
                statistics.compressed_size += len(chunk.raw)
        return digest

    # -- the end -------------------------------------------------------------------------------------------

    def _upload_manifests(self, previous: SnapshotName | None) -> bytes:
        """The client's manifest, then the server's with the statistics; the base snapshot must still be there."""
        calls, path = self._calls, f"{self._snapshot.path}/{MANIFEST_NAME}"
        self._store.replace("manifest-upload", path, formats.encode_manifest(self._manifest({})))
        if self._order.abort == "between manifests":
            raise _Aborted
        calls.read_file("manifest-read-back", self._store.at(path))
        raw = formats.encode_manifest(self._manifest({"chunk_upload_stats": self._statistics.as_manifest_entry()}))
        self._store.replace("manifest-finish", path, raw)
        if previous is not None and calls.stat("previous-snapshot", self._store.at(previous.path)) is None:
            raise BackupRefused(f"{previous.path} vanished during the backup")
        return raw

    def _manifest(self, unprotected: dict[str, object]) -> dict[str, object]:
        group, key = self._snapshot.group, self._order.encoder.key
        signature = None
        if key is not None:
            fingerprint = hashlib.sha256(key).hexdigest()
            pairs = ":".join(fingerprint[at : at + 2] for at in range(0, len(fingerprint), 2))
            unprotected = {"key-fingerprint": pairs, **unprotected}
            signature = hashlib.sha256(key + self._snapshot.path.encode()).hexdigest()
        return formats.make_manifest(
            group.backup_type,
            group.backup_id,
            self._snapshot.time,
            [file.listed for file in self._files],
            signature=signature,
            unprotected=unprotected,
        )

    def _close_folders(self) -> None:
        while self._folders:
            self._calls.step("folder-lock", "close")
            os.close(self._folders.pop())

    def _remove_aborted_snapshot(self) -> None:
        """At once, with indexes still open and mapped and the locks still held; those end only afterwards."""
        remove_snapshot_directory(self._store, self._snapshot.path, None)
        self._close_folders()
        while self._open_indexes:
            self._open_indexes.pop().drop()


def last_finished_snapshot(store: Store, group: GroupName) -> SnapshotName | None:
    """List a group in the server's manner (every snapshot's files, .protected); the newest with a manifest."""
    calls, finished = store.calls, []
    group_path = store.at(group.path)
    with calls.closing("group-list", calls.open_folder("group-list", group_path)) as descriptor:
        for entry in calls.read_directory("group-list", descriptor):
            time = parse_snapshot_time(entry.name)
            if time is None:
                continue
            files = calls.list_folder("group-list", entry.name, directory=descriptor)
            calls.stat("group-list", f"{group_path}/{entry.name}/.protected")
            if any(file.name == MANIFEST_NAME for file in files):
                finished.append(SnapshotName(group, time))
    newest = max(finished, default=None)
    if newest is not None:
        calls.read_file("previous-manifest", f"{store.at(newest.path)}/{MANIFEST_NAME}")
    return newest


def remove_snapshot_directory(store: Store, path: str, arrange: Callable[[list[str]], list[str]] | None) -> None:
    """stat .protected, list, unlinkat every file, rmdir. arrange puts the names in order; without it each file
    is unlinked while the listing is under way, as the server does."""
    calls, directory = store.calls, store.at(path)
    if calls.stat("forget", f"{directory}/.protected") is not None:
        raise BackupRefused(f"{path} is protected")
    calls.stat_link("forget", directory)
    unlink_all(store, path, arrange)
    calls.remove_directory("forget", directory)


def unlink_all(store: Store, path: str, arrange: Callable[[list[str]], list[str]] | None) -> None:
    """Unlink every file of a directory through its descriptor."""
    calls = store.calls
    folder = calls.open_folder("forget", store.at(path), os.O_NOFOLLOW | os.O_DIRECTORY)
    with ExitStack() as stack:
        stack.enter_context(calls.closing("forget", folder))
        names = (entry.name for entry in calls.read_directory("forget", folder))
        for name in names if arrange is None else arrange(list(names)):
            calls.unlink("forget", name, directory=folder)
