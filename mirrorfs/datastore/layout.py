"""Where things stand in a bucket: the layout of PBS 4's own S3 datastores, so any PBS 4 can read the mirror.

Chunks below ``NAME/.chunks/``, everything else at its path below ``NAME/.cnt/``, mirrorfs' own records below
``NAME/.mirrorfs/``, which PBS never reads.
"""

from __future__ import annotations

from dataclasses import dataclass

from mirrorfs.datastore.names import (
    NAMESPACE_MARKER_NAME,
    ChunkName,
    GroupFileName,
    NamespaceDirectoryName,
    NamespaceId,
    SnapshotDirectoryName,
    SnapshotFileName,
    chunk_path,
    classify,
)

DELETED_MARKER_NAME = "deleted.json"
"""The object beside the files of a deleted snapshot that says since when and until when; no file of a snapshot is
called so.
"""


@dataclass(frozen=True, slots=True)
class BucketLayout:
    """The keys of one datastore in a bucket; ``prefix`` is its name there, without slash at either end."""

    prefix: str

    def chunk_key(self, digest: bytes) -> str:
        """The key of a chunk."""
        return f"{self.prefix}/{chunk_path(digest)}"

    def content_key(self, path: str) -> str:
        """The key of a file that is no chunk, by its path in the datastore."""
        return f"{self.content_prefix}{path}"

    def namespace_key(self, namespace: NamespaceId) -> str:
        """The key of the empty object that marks a namespace (other than the root) as existing."""
        return self.content_key(f"{namespace.path}/{NAMESPACE_MARKER_NAME}")

    def own_key(self, name: str) -> str:
        """The key of a record that mirrorfs keeps for itself."""
        return f"{self.prefix}/.mirrorfs/{name}"

    def deleted_key(self, path: str, filename: str) -> str:
        """The key of a file of the deleted snapshot that was at ``path`` in the datastore."""
        return f"{self.deleted_prefix}{path}/{filename}"

    @property
    def deleted_prefix(self) -> str:
        """What the keys of all deleted snapshots begin with that are kept for a while."""
        return self.own_key("deleted/")

    @property
    def in_use_key(self) -> str:
        """The key of the claim of a PBS instance on this datastore."""
        return f"{self.prefix}/.in-use"

    @property
    def chunks_prefix(self) -> str:
        """What the keys of all chunks begin with."""
        return f"{self.prefix}/.chunks/"

    @property
    def content_prefix(self) -> str:
        """What the keys of everything else begin with."""
        return f"{self.prefix}/.cnt/"

    def chunk_digest(self, key: str) -> bytes | None:
        """The digest of the chunk that ``key`` belongs to; None when it is not the key of a chunk."""
        match classify(self._below(f"{self.prefix}/", key)):
            case ChunkName(digest=digest):
                return digest
        return None

    def content_path(self, key: str) -> str | None:
        """The path in the datastore of the file that ``key`` belongs to; None for any other or hostile key.

        A namespace marker gives its path, e.g. ``ns/a/.namespace``, though no such file is in a datastore.
        """
        path = self._below(self.content_prefix, key)
        directory, _, filename = path.rpartition(b"/")
        if filename == NAMESPACE_MARKER_NAME.encode():
            known = isinstance(classify(directory), NamespaceDirectoryName)
        else:
            known = isinstance(classify(path), SnapshotFileName | GroupFileName)
        return path.decode() if known else None

    def deleted_path(self, key: str) -> str | None:
        """The path that the file of a deleted snapshot had in the datastore, by its key; None for any other or
        hostile key.

        What says since when it is deleted gives its path beside them: ``vm/100/2026-11-22T10:00:00Z/deleted.json``.
        """
        path = self._below(self.deleted_prefix, key)
        directory, _, filename = path.rpartition(b"/")
        if filename == DELETED_MARKER_NAME.encode():
            known = isinstance(classify(directory), SnapshotDirectoryName)
        else:
            known = isinstance(classify(path), SnapshotFileName)
        return path.decode() if known else None

    @staticmethod
    def _below(prefix: str, key: str) -> bytes:
        # '?' and the empty path are in no file name of the grammar.
        return key.removeprefix(prefix).encode("ascii", "replace") if key.startswith(prefix) else b""
