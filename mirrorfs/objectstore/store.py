"""The object store as the rest of mirrorfs uses it: asynchronous, patient, and sure of what it has stored."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

from mirrorfs.datastore.content import Content
from mirrorfs.objectstore.answers import CheckBeginning, Precondition, Retention, StoredObject, StoredVersion
from mirrorfs.objectstore.capabilities import UNPROVEN, LockMode, StoreCapabilities
from mirrorfs.objectstore.client import S3Client
from mirrorfs.objectstore.deletions import Deletions
from mirrorfs.objectstore.errors import StoreError
from mirrorfs.objectstore.patience import Observer, PatientRequests
from mirrorfs.objectstore.probe import Probe
from mirrorfs.objectstore.reading import Reading
from mirrorfs.objectstore.retry import FOR_EVER, Condition, Patience
from mirrorfs.objectstore.uploads import Uploads
from mirrorfs.objectstore.url import StoreOptions

log = logging.getLogger(__name__)

QUIET_SECONDS = 30.0
"""A request for which nothing came or went for so long is told."""


class ObjectStore:
    """All access to one bucket. Every operation waits out StoreUnavailable as its `patience` says.

    Raises only StoreError. To be used in one trio run. Cancelling takes effect at once while an operation waits or
    reads; a PUT or DELETE that is under way is first brought to its end (at most the time-outs of S3Client), since
    nobody could know otherwise in which order it and what follows take effect.
    """

    def __init__(
        self,
        client: S3Client,
        *,
        parallelism: int = 8,
        patience: Patience = FOR_EVER,
        capabilities: StoreCapabilities = UNPROVEN,
        observer: Observer | None = None,
        condition: Condition | None = None,
    ) -> None:
        """`parallelism` bounds the requests under way; without `capabilities` or a `probe`, each PUT is read back.

        The observer is called in the trio thread, before a PUT or DELETE is sent (the repeating of one that failed
        is not another) and after it was answered with success. Stores that are given one `condition` judge the store's
        health, and log its changes, together.
        """
        self.uploaded_bytes = 0
        self.uploaded_objects = 0
        self._client = client
        self._requests = PatientRequests(
            client, parallelism=parallelism, patience=patience, observer=observer, condition=condition
        )
        self._reading = Reading(self._requests)
        self._uploads = Uploads(self._requests, self._reading, capabilities)
        self._deletions = Deletions(self._requests)

    @property
    def capabilities(self) -> StoreCapabilities:
        """What the store is known to honour; changes when it is seen not to any more."""
        return self._uploads.capabilities

    @capabilities.setter
    def capabilities(self, capabilities: StoreCapabilities) -> None:
        self._uploads.capabilities = capabilities

    @property
    def condition(self) -> Condition:
        """Whether the store serves, for status."""
        return self._requests.condition

    @property
    def place(self) -> str:
        """Bucket and endpoint, for messages."""
        return self._client.place

    @property
    def done_without(self) -> Mapping[str, str]:
        """What the store has refused of that which is optional, by name, with its own words."""
        return self._client.features.refused()

    @property
    def requests_without_progress(self) -> Sequence[tuple[str, float]]:
        """Requests for which nothing has come or gone for half a minute, and for how many seconds."""
        return self._client.requests_without_progress(QUIET_SECONDS)

    def count_upload(self, size: int) -> None:
        """Counts an object of so many bytes that was stored past this, see `at_once`."""
        self.uploaded_bytes += size
        self.uploaded_objects += 1

    async def put(self, key: str, body: Content, *, crc32c: int | None = None) -> StoredObject:
        """Stores the body and returns when the store is seen to hold it: size and content are what was sent.

        `crc32c` is that of the body, if it is known already.

        What the answer to the PUT says is not enough: `capabilities.confirmation` tells how the object is looked at.
        Where it does not look as it should, which may be an old view of it, the bytes are read back and decide; where
        those are not there or not right, the object is sent again after a pause. Where an answer was lost, the object
        is looked for before it is sent again.
        Raises ConfirmationFailed when that has failed for several PUTs.
        """
        stored = await self._uploads.put(key, body, crc32c)
        self.count_upload(len(body))
        return stored

    async def put_over(self, key: str, body: bytes, etag: str | None) -> None:
        """As `put`, if the object of this ETag still stands there; None: if none does.

        The body must be one that nobody else would put. A store that has no such PUTs, or whose ETag is empty, gets a
        plain one: `done_without` names it then.
        Raises ObjectChanged when something else stands there, and ConfirmationFailed as `put` does.
        """
        if etag == "":
            await self._uploads.put(key, body)
        else:
            await self._uploads.put_over(key, body, Precondition(etag))
        self.count_upload(len(body))

    async def copy(
        self,
        source_key: str,
        key: str,
        *,
        size: int,
        crc32c: int,
        body_md5: bytes | None = None,
    ) -> StoredObject:
        """Has the store copy an object, and returns when it is seen to hold the copy, as `put` does.

        Size (at most 5 GB), CRC32C and, if known, MD5 digest are of the content that the source must have. Where the
        store proves nothing but MD5s and none is given, the copy is compared with the ETag that the source had before.
        It does not count as uploaded.
        Raises ObjectMissing when there is no source, CopyUnsupported (a StoreRejected) when the store does not copy,
        and ConfirmationFailed also when the source has another content.
        """
        return await self._uploads.copy(source_key, key, size=size, crc32c=crc32c, body_md5=body_md5)

    async def get(self, key: str, maximum: int, version_id: str | None = None) -> bytes:
        """As `get_content`, for what is small enough to be in memory."""
        return bytes(await self.get_content(key, maximum, version_id))

    async def get_content(
        self,
        key: str,
        maximum: int,
        version_id: str | None = None,
        *,
        check_beginning: CheckBeginning | None = None,
    ) -> Content:
        """The whole object, the latest version of it or the one of this id. Raises ObjectMissing.

        Raises ObjectTooLarge when it has more than `maximum` bytes: others can write below any key, and no more is
        taken into memory than belongs there. Raises the DatastoreError that `check_beginning`, which is called in a
        thread, raises each time.
        That a version is only the mark of a deletion is an ObjectMissing, too.
        A body that does not fit the store's own checksum was probably damaged on its way and is read again. Where that
        does not change anything, what came last is returned: whoever asks knows better what it must be.
        """
        return await self._reading.get(key, maximum, version_id, check_beginning)

    async def get_unsummed(self, key: str, maximum: int, *, check_beginning: CheckBeginning | None = None) -> Content:
        """As `get_content`, for who checks all of the content, and reads it by that again if it is not sound: where no
        cheaper checksum comes with it, it is not compared with the store's MD5.
        """
        return await self._reading.get_unsummed(key, maximum, check_beginning)

    def get_at_once(self, key: str, maximum: int) -> Content:
        """As `get_unsummed`, in the thread that calls it, and tried once: for who has another way if it does not work.

        Raises StoreError. The limit of requests under way is the caller's to keep.
        """
        return self._client.get_unsummed(key, maximum)

    async def head(self, key: str) -> StoredObject | None:
        """What the store tells of an object, or None when there is none."""
        return await self._requests.read(lambda: self._client.head_object(key))

    async def list(self, prefix: str) -> AsyncGenerator[StoredObject, None]:
        """All objects whose key begins with the prefix, in no order, page by page as they are asked for.

        An async generator: use it as ``async with aclosing(store.list(prefix)) as objects``.
        """
        async with aclosing(self._reading.list(prefix)) as objects:
            async for found in objects:
                yield found

    async def list_versions(self, prefix: str) -> AsyncGenerator[StoredVersion, None]:
        """All versions, and marks of deletions, of the keys that begin with the prefix; see `list`.

        In a bucket that never was versioned, the objects as they are. Raises StoreRejected when the store lists no
        versions.
        """
        async with aclosing(self._reading.list_versions(prefix)) as versions:
            async for found in versions:
                yield found

    async def delete(self, keys: Sequence[str]) -> None:
        """Deletes objects; those that are not there are fine.

        Raises StoreRejected when the store refuses one for good; the others are gone then.
        """
        for error in (await self.delete_each(keys)).values():
            raise error

    async def delete_each(self, keys: Sequence[str]) -> Mapping[str, StoreError]:
        """Deletes objects, those that are not there are fine, and returns why the store refuses which for good.

        All others are gone. Refused for good is also a key alone that is denied while others are deleted, or fails in
        many answers that delete others; that all are denied is taken for a matter of the credentials and waited out.
        Raises StoreUnavailable as every operation does, and StoreRejected when it is the request that is refused; it
        is not known then which of the objects are gone.
        In a versioned bucket, gone means that a mark of the deletion is the latest version.
        """
        return await self._deletions.delete_each(keys)

    async def retain(self, key: str, until: float, mode: LockMode) -> None:
        """Has the store keep the latest version of an object at least until then, in Unix time.

        Nothing is done where it is kept as long already. The mode is for an object that has had no retention yet; any
        other keeps its own, since most stores let nobody change it.
        Raises ObjectMissing, and StoreRejected where the bucket has no Object Lock or the time is past.
        """
        found = await self._requests.read(lambda: self._client.get_retention(key))
        if found is not None and found.until >= until:
            return
        wanted = Retention(mode if found is None else found.mode, until)
        await self._requests.change(lambda: self._client.put_retention(key, wanted))

    async def retained_until(self, key: str) -> float | None:
        """Until when, in Unix time, the latest version of an object is kept; None where no retention is known.

        It may be past. This is asked when a deletion was refused, so it is asked once, and never raises: that refusal
        is what is to be told, whatever becomes of this question.
        """
        try:
            found = await self._requests.in_thread(lambda: self._client.get_retention(key), may_abandon=True)
        except StoreError as error:
            log.info("It is not known until when an object is kept. %s", error)
            return None
        return None if found is None else found.until

    async def check_bucket(self) -> None:
        """Returns when the bucket exists and may be looked at."""
        await self._requests.read(self._client.check_bucket)

    async def clock_difference(self, prefix: str = "") -> float | None:
        """How many seconds the store's clock is ahead of this machine's, to a second or two, from a fresh request.

        None where its answer has no date. The prefix is for who may list only what is below.
        """
        return await self._requests.read(lambda: self._client.clock_difference(prefix))

    async def probe(self, prefix: str) -> StoreCapabilities:
        """Finds out what this store honours and what the bucket keeps, sets `capabilities`, and returns them.

        Writes and deletes a few small objects directly below `prefix` + "/", always of the same names, so that what
        a crash left is removed by the next probe. In a versioned bucket, earlier versions of them stay behind.
        Raises StoreRejected when the store takes no object at all. That it refuses to copy, or to tell of versions or
        locks, means that it has none.
        """
        await Probe(self._requests, self._uploads, self._deletions, prefix).run()
        return self.capabilities


def open_store(
    bucket: str,
    options: StoreOptions,
    *,
    parallelism: int = 8,
    patience: Patience = FOR_EVER,
    observer: Observer | None = None,
) -> ObjectStore:
    """An ObjectStore for this bucket; nothing is sent yet."""
    client = S3Client(bucket, options, parallelism=parallelism)
    return ObjectStore(client, parallelism=parallelism, patience=patience, observer=observer)
