"""Deleted snapshots that the bucket keeps for a while: their files, which nobody else has, are read and checked."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from mirrorfs.checking.reading import Limit, StoreReader, read_checked
from mirrorfs.datastore.blob import check_blob
from mirrorfs.datastore.content import Content
from mirrorfs.datastore.deletion import parse_deletion
from mirrorfs.datastore.errors import DatastoreError, TooMuch
from mirrorfs.datastore.layout import DELETED_MARKER_NAME
from mirrorfs.datastore.limits import LONGEST_CLIENT_LOG, LONGEST_DELETION, LONGEST_MANIFEST
from mirrorfs.datastore.manifest import Manifest, check_listed_file, parse_manifest
from mirrorfs.datastore.names import CLIENT_LOG_NAME, MANIFEST_NAME
from mirrorfs.objectstore.errors import ObjectMissing
from mirrorfs.replication.scrubbing.examination import past_lag, reason_of
from mirrorfs.replication.work.bucket import Bucket
from mirrorfs.replication.work.commits import CommittedState
from mirrorfs.replication.work.stored import UNUSABLE
from mirrorfs.state.retention import DeletedPhase, DeletedSnapshot

Result = TypeVar("Result")

# Where the bucket has them. No path in a datastore begins like this.
_ROOM = ".mirrorfs/deleted/"


def path_of_kept(snapshot: str) -> str:
    """Return the path by which a scrub and a problem name a deleted snapshot, by the path that it had."""
    return f"{_ROOM}{snapshot}"


def kept_at(path: str) -> str | None:
    """Return the path that the deleted snapshot of such a path had in the datastore, None for any other path."""
    snapshot = path.removeprefix(_ROOM)
    return None if snapshot == path else snapshot


class KeptSnapshots:
    """Reads the files of a deleted snapshot. Its chunks are read with all others."""

    def __init__(self, bucket: Bucket, state: CommittedState) -> None:
        self._bucket = bucket
        self._state = state
        self._reader = StoreReader(bucket.store)

    def is_kept(self, snapshot: str) -> bool:
        """Tell whether a deleted snapshot is kept, and complete, as far as the state knows."""
        return self._known(snapshot) is not None

    async def fault(self, snapshot: str) -> str | None:
        """Read all files of a deleted snapshot; returns what is wrong with them, as a sentence, None if nothing is or
        it is not kept any more.

        Raises:
            StoreError: the store refuses to give one, which says nothing of what it holds.
            TooMuch: there is no memory or disk space here to hold one, which says nothing of it either.
        """
        known = self._known(snapshot)
        if known is None:
            return None
        try:
            damages = await self._damages(known)
        except TooMuch as error:
            raise TooMuch(f"{path_of_kept(snapshot)} in the bucket cannot be checked for now: {error}") from error
        # What has ended meanwhile was perhaps read while it was being removed.
        if not damages or self._known(snapshot) != known:
            return None
        named = "; ".join(f"{name}: {reason}" for name, reason in damages.items())
        costs = MANIFEST_NAME in damages or not known.files.keys().isdisjoint(damages)
        return f"{named}; the datastore has it no more{f', and it costs {snapshot} (deleted)' if costs else ''}"

    def _known(self, snapshot: str) -> DeletedSnapshot | None:
        known = self._state.view(lambda transaction: transaction.retention.deleted(snapshot))
        return known if known is not None and known.phase is DeletedPhase.KEPT else None

    async def _damages(self, known: DeletedSnapshot) -> dict[str, str]:
        """What is wrong with which file. Without its manifest, nothing else of a snapshot can be used."""
        damages: dict[str, str] = {}
        try:
            manifest = await self._read(known, MANIFEST_NAME, Limit(LONGEST_MANIFEST), partial(_manifest_of, known))
        except TooMuch:
            raise
        except UNUSABLE as error:
            return {MANIFEST_NAME: reason_of(error)}
        for file in manifest.files:
            limit = Limit(file.longest, file.check_beginning)
            await self._look(known, file.filename, limit, partial(check_listed_file, file), damages)
        await self._look(known, DELETED_MARKER_NAME, Limit(LONGEST_DELETION), _check_deletion, damages)
        if CLIENT_LOG_NAME in known.names and CLIENT_LOG_NAME not in known.files:
            await self._look(known, CLIENT_LOG_NAME, Limit(LONGEST_CLIENT_LOG), check_blob, damages)
        return damages

    async def _look(
        self,
        known: DeletedSnapshot,
        name: str,
        limit: Limit,
        check: Callable[[Content], object],
        damages: dict[str, str],
    ) -> None:
        try:
            await self._read(known, name, limit, check)
        except TooMuch:
            raise
        except UNUSABLE as error:
            # What no manifest lists may never have been put.
            if name != CLIENT_LOG_NAME or not isinstance(error, ObjectMissing):
                damages[name] = reason_of(error)

    async def _read(
        self, known: DeletedSnapshot, name: str, limit: Limit, check: Callable[[Content], Result]
    ) -> Result:
        key = self._bucket.layout.deleted_key(known.path, name)
        return await past_lag(lambda: read_checked(self._reader, key, limit, check))


def _manifest_of(known: DeletedSnapshot, data: Content) -> Manifest:
    manifest = parse_manifest(bytes(data))
    if manifest.checksums != known.files:
        raise DatastoreError("it lists other files than were published")
    return manifest


def _check_deletion(data: Content) -> None:
    parse_deletion(bytes(data))
