"""The object store as the rest of mirrorfs uses it: asynchronous, patient, and sure of what it has stored."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import crc32c
import trio

from mirrorfs.datastore.errors import DatastoreError
from mirrorfs.objectstore.capabilities import UNPROVEN, Confirmation, LockMode, StoreCapabilities
from mirrorfs.objectstore.client import (
    MAX_KEYS_PER_DELETE,
    MD5_ETAG,
    CheckBeginning,
    PutReceipt,
    Retention,
    S3Client,
    StoredObject,
    StoredVersion,
    VersionMarker,
)
from mirrorfs.objectstore.errors import (
    BodyDamaged,
    ChecksumRefused,
    ConfirmationFailed,
    ObjectMissing,
    ObjectTooLarge,
    StoreError,
    StoreReason,
    StoreRejected,
    StoreUnavailable,
)
from mirrorfs.objectstore.retry import FOR_EVER, Condition, Patience, Persistence
from mirrorfs.objectstore.url import StoreOptions
from mirrorfs.steps import reach

log = logging.getLogger(__name__)

Result = TypeVar("Result")
Observer = Callable[[str, str], None]
"""Called with a step ("before-put", "after-put", "before-delete", "after-delete") and a key.

A copy is a PUT of the key that it is made for.
"""

_PUTS_BEFORE_CONFIRMATION_FAILS = 5
_READS_BEFORE_DAMAGE_IS_BELIEVED = 3
_PUTS_OF_A_PROBE = 5
_TRIES_OF_A_QUESTION = 3
_ANSWERS_BEFORE_A_KEY_IS_REFUSED = 8
_LAST_MODIFIED_TOLERANCE = 2.0
"""In seconds: one that the headers have no digits for, and one that the clocks inside a store may differ by."""
_PROBE_BODY = b"mirrorfs asks what this store honours; this object is deleted at once.\n"
_MD5_OF_SOMETHING_ELSE = hashlib.md5(b"other", usedforsecurity=False).digest()


@dataclass(frozen=True, slots=True)
class _Expected:
    """What must be found below a key: size and CRC32C of the content, its MD5 in hex and all of it where known."""

    key: str
    size: int
    crc32c: int
    md5: str | None = None
    body: bytes | None = None

    def is_met_by(self, found: bytes) -> bool:
        """Whether these bytes are it."""
        if self.body is not None:
            return found == self.body
        if self.md5 is not None and hashlib.md5(found, usedforsecurity=False).hexdigest() != self.md5:
            return False
        return len(found) == self.size and crc32c.crc32c(found) == self.crc32c


@dataclass(frozen=True, slots=True)
class _Sent:
    """What is being stored, with the checksums that must come out at the other end."""

    key: str
    body: bytes
    crc32c: int
    md5: bytes

    @classmethod
    def seal(cls, key: str, body: bytes) -> _Sent:
        return cls(key, body, crc32c.crc32c(body), hashlib.md5(body, usedforsecurity=False).digest())

    @property
    def expected(self) -> _Expected:
        return _Expected(self.key, len(self.body), self.crc32c, self.md5.hex(), self.body)


@dataclass(slots=True)
class _Deletion:
    """A batch of keys that is being deleted: those that remain, and those that the store refuses for good."""

    remaining: Sequence[str]
    refused: dict[str, StoreError] = field(default_factory=dict)
    has_deleted: bool = False
    answers: int = 0

    def note(self, failures: Mapping[str, StoreError]) -> None:
        """To be called with each answer; raises what is worth waiting for, if anything remains."""
        self.answers += 1
        self.has_deleted = self.has_deleted or len(failures) < len(self.remaining)
        for key, error in failures.items():
            if not isinstance(error, StoreUnavailable):
                self.refused[key] = error
            elif self._concerns_only_its_key(error):
                self.refused[key] = StoreRejected(error.action, f"{error.cause}, while it deletes others")
        self.remaining = [key for key in failures if key not in self.refused]
        for key in self.remaining:
            raise failures[key]

    def _concerns_only_its_key(self, error: StoreUnavailable) -> bool:
        """Where nothing could be deleted, it may be the credentials, or the store as a whole."""
        if error.reason is StoreReason.SERVER_ERROR:
            return self.has_deleted and self.answers >= _ANSWERS_BEFORE_A_KEY_IS_REFUSED
        return self.has_deleted and _is_denied(error)


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
        self.capabilities = capabilities
        self.uploaded_bytes = 0
        self.uploaded_objects = 0
        self._client = client
        self._observer = observer
        self._limiter = trio.CapacityLimiter(parallelism)
        self._own_key: str | None = None
        self._persistence = Persistence(patience, condition or Condition())

    @property
    def condition(self) -> Condition:
        """Whether the store serves, for status."""
        return self._persistence.condition

    @property
    def place(self) -> str:
        """Bucket and endpoint, for messages."""
        return self._client.place

    async def put(self, key: str, body: bytes) -> StoredObject:
        """Stores the body and returns when the store is seen to hold it: size and content are what was sent.

        What the answer to the PUT says is not enough: `capabilities.confirmation` tells how the object is looked at.
        Where it does not look as it should, which may be an old view of it, the bytes are read back and decide; where
        those are not there or not right, the object is sent again after a pause.
        Raises ConfirmationFailed when that has failed for several PUTs.
        """
        sent = await self._in_thread(lambda: _Sent.seal(key, body), may_abandon=True)
        stored = await self._store(f"store {key} in", sent.expected, lambda: self._put_once(sent))
        self.uploaded_bytes += len(body)
        self.uploaded_objects += 1
        return stored

    async def copy(
        self, source_key: str, key: str, *, size: int, crc32c: int, body_md5: bytes | None = None
    ) -> StoredObject:
        """Has the store copy an object, and returns when it is seen to hold the copy, as `put` does.

        Size (at most 5 GB), CRC32C and, if known, MD5 digest are of the content that the source must have. Where the
        store proves nothing but MD5s and none is given, the copy is compared with the ETag that the source had before.
        It does not count as uploaded.
        Raises ObjectMissing when there is no source, CopyUnsupported (a StoreRejected) when the store does not copy,
        and ConfirmationFailed also when the source has another content.
        """
        md5 = body_md5.hex() if body_md5 is not None else await self._md5_of_source(source_key)
        expected = _Expected(key, size, crc32c, md5)
        return await self._store(f"copy {source_key} to {key} in", expected, lambda: self._copy_once(source_key, key))

    async def _md5_of_source(self, source_key: str) -> str | None:
        """What its ETag says, where that is needed."""
        if self.capabilities.confirmation is not Confirmation.ETAG_MD5:
            return None
        source = await self.head(source_key)
        if source is None:
            raise ObjectMissing(f"copy {source_key} in {self.place}", "there is no such object")
        # Of an object that was put in parts, it is none.
        return source.etag if MD5_ETAG.fullmatch(source.etag) else None

    async def get(
        self,
        key: str,
        maximum: int,
        version_id: str | None = None,
        *,
        check_beginning: CheckBeginning | None = None,
    ) -> bytes:
        """The whole object, the latest version of it or the one of this id. Raises ObjectMissing.

        Raises ObjectTooLarge when it has more than `maximum` bytes: others can write below any key, and no more is
        taken into memory than belongs there. Raises the DatastoreError that `check_beginning`, which is called in a
        thread, raises each time.
        That a version is only the mark of a deletion is an ObjectMissing, too.
        A body that does not fit the store's own checksum was probably damaged on its way and is read again. Where that
        does not change in several tries, what came last is returned: whoever asks knows better what it must be.
        """
        for _ in range(_READS_BEFORE_DAMAGE_IS_BELIEVED):
            try:
                if version_id is None:
                    return await self._read(lambda: self._client.get_object(key, maximum, check_beginning))
                return await self._read(
                    functools.partial(self._client.get_version, key, version_id, maximum, check_beginning)
                )
            except (BodyDamaged, DatastoreError) as error:
                damaged = error
        log.warning("%s It has been read %d times.", damaged, _READS_BEFORE_DAMAGE_IS_BELIEVED)
        if isinstance(damaged, DatastoreError):
            raise damaged
        return damaged.body

    async def head(self, key: str) -> StoredObject | None:
        """What the store tells of an object, or None when there is none."""
        return await self._read(lambda: self._client.head_object(key))

    async def list(self, prefix: str) -> AsyncGenerator[StoredObject, None]:
        """All objects whose key begins with the prefix, in no order, page by page as they are asked for.

        An async generator: use it as ``async with aclosing(store.list(prefix)) as objects``.
        """
        token: str | None = None
        while True:
            page = await self._read(functools.partial(self._client.list_page, prefix, token))
            for found in page.objects:
                yield found
            if page.next_token is None:
                return
            token = page.next_token

    async def list_versions(self, prefix: str) -> AsyncGenerator[StoredVersion, None]:
        """All versions, and marks of deletions, of the keys that begin with the prefix; see `list`.

        In a bucket that never was versioned, the objects as they are. Raises StoreRejected when the store lists no
        versions.
        """
        marker: VersionMarker | None = None
        is_empty = True
        while True:
            page = await self._read(functools.partial(self._client.list_versions_page, prefix, marker))
            for found in page.versions:
                is_empty = False
                yield found
            if page.next_marker is None:
                break
            marker = page.next_marker
        # A store that does not know the request may answer it with another kind of listing.
        if is_empty and (await self._read(lambda: self._client.list_page(prefix, None))).objects:
            raise StoreRejected(
                f"list the versions of {prefix} in {self.place}", "the store lists objects there, but no versions"
            )

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
        refused: dict[str, StoreError] = {}
        each = list(dict.fromkeys(keys))
        for start in range(0, len(each), MAX_KEYS_PER_DELETE):
            refused.update(await self._delete_batch(each[start : start + MAX_KEYS_PER_DELETE]))
        return refused

    async def retain(self, key: str, until: float, mode: LockMode) -> None:
        """Has the store keep the latest version of an object at least until then, in Unix time.

        Nothing is done where it is kept as long already. The mode is for an object that has had no retention yet; any
        other keeps its own, since most stores let nobody change it.
        Raises ObjectMissing, and StoreRejected where the bucket has no Object Lock or the time is past.
        """
        found = await self._read(lambda: self._client.get_retention(key))
        if found is not None and found.until >= until:
            return
        wanted = Retention(mode if found is None else found.mode, until)
        await self._write(lambda: self._client.put_retention(key, wanted))

    async def retained_until(self, key: str) -> float | None:
        """Until when, in Unix time, the latest version of an object is kept; None where it has no retention.

        It may be past. Raises ObjectMissing.
        """
        found = await self._read(lambda: self._client.get_retention(key))
        return None if found is None else found.until

    async def check_bucket(self) -> None:
        """Returns when the bucket exists and may be looked at."""
        await self._read(self._client.check_bucket)

    async def clock_difference(self, prefix: str = "") -> float | None:
        """How many seconds the store's clock is ahead of this machine's, to a second or two, from a fresh request.

        None where its answer has no date. The prefix is for who may list only what is below.
        """
        return await self._read(lambda: self._client.clock_difference(prefix))

    async def probe(self, prefix: str) -> StoreCapabilities:
        """Finds out what this store honours and what the bucket keeps, sets `capabilities`, and returns them.

        Writes and deletes a few small objects directly below `prefix` + "/", always of the same names, so that what
        a crash left is removed by the next probe. In a versioned bucket, earlier versions of them stay behind.
        Raises StoreRejected when the store takes no object at all. That it refuses to copy, or to tell of versions or
        locks, means that it has none.
        """
        keys = [f"{prefix}/probe-{name}" for name in ("right", "wrong-crc32c", "wrong-md5", "copy")]
        self._own_key = keys[0]
        right, wrong_crc32c, wrong_md5, copy = (_Sent.seal(key, _PROBE_BODY) for key in keys)
        try:
            receipt, head = await self._put_and_look(right)
            object_lock = await self._ask(self._client.object_lock_rule, prefix)
            self.capabilities = StoreCapabilities(
                rejects_wrong_crc32c=await self._rejects(wrong_crc32c, wrong_crc32c.crc32c ^ 1, None),
                rejects_wrong_md5=await self._rejects(wrong_md5, None, _MD5_OF_SOMETHING_ELSE),
                put_returns_crc32c=receipt.crc32c == right.crc32c,
                head_returns_crc32c=head is not None and head.crc32c == right.crc32c,
                etag_is_md5=head is not None and head.etag == right.md5.hex(),
                copies=await self._copies(right.key, copy.expected),
                # There is no Object Lock without versions, even where only the one may be asked for.
                versioned=object_lock is not None or bool(await self._ask(self._client.is_versioned, prefix)),
                object_lock=object_lock,
            )
            reach("probe.stored")
        finally:
            for error in (await self.delete_each(keys)).values():
                log.debug("An object of the probe stays behind. %s", error)
        return self.capabilities

    async def _put_and_look(self, sent: _Sent) -> tuple[PutReceipt, StoredObject | None]:
        for attempt in range(1, _PUTS_OF_A_PROBE + 1):
            # Without Content-MD5, so that a store which only echoes it is not taken for one that calculates.
            receipt = await self._write(
                lambda: self._client.put_object(sent.key, sent.body, crc32c=sent.crc32c, md5=None)
            )
            head = await self.head(sent.key)
            if head is not None:
                break
            # One object that is lost or not seen yet must not make every later upload expensive.
            await self._persistence.pause(attempt)
        return receipt, head

    async def _copies(self, source_key: str, expected: _Expected) -> bool:
        for attempt in range(1, _PUTS_OF_A_PROBE + 1):
            receipt = await self._ask(lambda: self._client.copy_object(source_key, expected.key), expected.key)
            if receipt is None:
                return False
            if await self._holds(expected):
                return True
            await self._persistence.pause(attempt)
        return False

    async def _ask(self, question: Callable[[], Result], prefix: str) -> Result | None:
        """The answer, or None where the store refuses it: at once, or each time while it serves others.

        Many a policy denies what nobody has thought of, and that must not be waited out as other denials are. That
        others are served is seen by a look at what is below the prefix.
        """
        for attempt in range(_TRIES_OF_A_QUESTION):
            if attempt > 0:
                await self._read(lambda: self._client.check_bucket(prefix))
                await self._persistence.pause(attempt)
            try:
                return await self._in_thread(question, may_abandon=False)
            except StoreUnavailable as error:
                refusal: StoreError = error
            except StoreError as error:
                refusal = error
                break
        log.debug("Taken for a no: %s", refusal)
        return None

    async def _rejects(self, sent: _Sent, crc32c_value: int | None, md5: bytes | None) -> bool:
        try:
            await self._write(lambda: self._client.put_object(sent.key, sent.body, crc32c=crc32c_value, md5=md5))
        except StoreRejected:
            return True
        return False

    async def _put_once(self, sent: _Sent) -> PutReceipt:
        def send() -> PutReceipt:
            return self._client.put_object(sent.key, sent.body, crc32c=sent.crc32c, md5=sent.md5)

        self._observe("before-put", [sent.key])
        receipt = await self._write(send)
        self._observe("after-put", [sent.key])
        return receipt

    async def _copy_once(self, source_key: str, key: str) -> PutReceipt:
        self._observe("before-put", [key])
        receipt = await self._write(lambda: self._client.copy_object(source_key, key))
        self._observe("after-put", [key])
        return receipt

    async def _store(self, action: str, expected: _Expected, send: Callable[[], Awaitable[PutReceipt]]) -> StoredObject:
        """Sends until what is expected is there. The action ends with a preposition that the bucket follows."""
        for attempt in range(_PUTS_BEFORE_CONFIRMATION_FAILS):
            if attempt > 0:
                await self._persistence.pause(attempt)
            try:
                receipt = await send()
            except ChecksumRefused:
                # The checksums are right, so the body was damaged on its way.
                continue
            if await self._confirm(expected, receipt):
                return StoredObject(expected.key, expected.size, receipt.etag, expected.crc32c)
        raise ConfirmationFailed(
            f"{action} {self.place}",
            f"after each of {_PUTS_BEFORE_CONFIRMATION_FAILS} tries, other bytes than were sent are there, or none",
            "Distrust this store, or what stands between, until it is known why.",
        )

    async def _confirm(self, expected: _Expected, receipt: PutReceipt) -> bool:
        if self.capabilities.confirmation is not Confirmation.READ_BACK:
            head = await self.head(expected.key)
            if head is not None and self._shows(head, expected, receipt):
                return True
        return await self._holds(expected)

    def _shows(self, head: StoredObject, expected: _Expected, receipt: PutReceipt) -> bool:
        if _is_older(head, receipt):
            # Of the same content perhaps, but deleted since: an old view, which says nothing of this PUT.
            return False
        compares_md5 = self.capabilities.etag_is_md5 and expected.md5 is not None
        if head.size != expected.size or (compares_md5 and head.etag != expected.md5):
            return False
        match self.capabilities.confirmation:
            case Confirmation.HEAD_CHECKSUM:
                # There are stores whose copies have no checksum.
                return head.crc32c == expected.crc32c or (head.crc32c is None and compares_md5)
            case Confirmation.ETAG_MD5:
                return compares_md5
            case Confirmation.PUT_CHECKSUM:
                return receipt.crc32c == expected.crc32c and head.etag == receipt.etag != ""
            case Confirmation.READ_BACK:
                return False

    async def _holds(self, expected: _Expected) -> bool:
        try:
            found = await self.get(expected.key, expected.size)
        except (ObjectMissing, ObjectTooLarge):
            return False
        return await self._in_thread(lambda: expected.is_met_by(found), may_abandon=True)

    async def _delete_batch(self, keys: Sequence[str]) -> Mapping[str, StoreError]:
        deletion = _Deletion(keys)

        async def delete_remaining() -> None:
            failures = await self._delete_once(deletion.remaining)
            if not deletion.has_deleted and len(failures) == len(deletion.remaining):
                deletion.has_deleted = await self._may_delete(failures.values())
            deletion.note(failures)

        self._observe("before-delete", keys)
        await self._persistence.repeat(delete_remaining)
        self._observe("after-delete", [key for key in keys if key not in deletion.refused])
        return deletion.refused

    async def _may_delete(self, failures: Iterable[StoreError]) -> bool:
        """Whether a permission that all these keys were denied is only theirs: one of our own can be deleted.

        The probe has deleted it before, and nobody locks it.
        """
        if self._own_key is None or not all(map(_is_denied, failures)):
            return False
        return not await self._delete_once([self._own_key])

    async def _delete_once(self, keys: Sequence[str]) -> Mapping[str, StoreError]:
        return await self._in_thread(lambda: self._client.delete_objects(keys), may_abandon=False)

    async def _read(self, request: Callable[[], Result]) -> Result:
        return await self._persistence.repeat(lambda: self._in_thread(request, may_abandon=True))

    async def _write(self, request: Callable[[], Result]) -> Result:
        return await self._persistence.repeat(lambda: self._in_thread(request, may_abandon=False))

    async def _in_thread(self, request: Callable[[], Result], *, may_abandon: bool) -> Result:
        return await trio.to_thread.run_sync(request, limiter=self._limiter, abandon_on_cancel=may_abandon)

    def _observe(self, step: str, keys: Sequence[str]) -> None:
        if self._observer is not None:
            for key in keys:
                self._observer(step, key)


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


def _is_denied(error: StoreError) -> bool:
    return isinstance(error, StoreUnavailable) and error.reason is StoreReason.ACCESS_DENIED


def _is_older(head: StoredObject, receipt: PutReceipt) -> bool:
    if head.modified_at is None or receipt.began_at is None:
        return False
    return head.modified_at < receipt.began_at - _LAST_MODIFIED_TOLERANCE
