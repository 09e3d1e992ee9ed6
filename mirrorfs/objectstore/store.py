"""The object store as the rest of mirrorfs uses it: asynchronous, patient, and sure of what it has stored."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import crc32c
import trio

from mirrorfs.objectstore.capabilities import UNPROVEN, Confirmation, StoreCapabilities
from mirrorfs.objectstore.client import MAX_KEYS_PER_DELETE, PutReceipt, S3Client, StoredObject
from mirrorfs.objectstore.errors import (
    BodyDamaged,
    ChecksumRefused,
    ConfirmationFailed,
    ObjectMissing,
    StoreError,
    StoreRejected,
    StoreUnavailable,
)
from mirrorfs.objectstore.retry import FOR_EVER, Condition, Patience, Persistence
from mirrorfs.objectstore.url import StoreOptions
from mirrorfs.steps import reach

log = logging.getLogger(__name__)

Result = TypeVar("Result")
Observer = Callable[[str, str], None]
"""Called with a step ("before-put", "after-put", "before-delete", "after-delete") and a key."""

_PUTS_BEFORE_CONFIRMATION_FAILS = 5
_READS_BEFORE_DAMAGE_IS_BELIEVED = 3
_PUTS_OF_A_PROBE = 5
_LAST_MODIFIED_TOLERANCE = 2.0
"""In seconds: one that the headers have no digits for, and one that the clocks inside a store may differ by."""
_PROBE_BODY = b"mirrorfs asks what this store honours; this object is deleted at once.\n"


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
        for attempt in range(_PUTS_BEFORE_CONFIRMATION_FAILS):
            if attempt > 0:
                await self._persistence.pause(attempt)
            try:
                receipt = await self._put_once(sent)
            except ChecksumRefused:
                # The checksums are right, so the body was damaged on its way.
                continue
            if await self._confirm(sent, receipt):
                self.uploaded_bytes += len(body)
                self.uploaded_objects += 1
                return StoredObject(key, len(body), receipt.etag, sent.crc32c)
        raise ConfirmationFailed(
            f"store {key} in {self.place}",
            f"after each of {_PUTS_BEFORE_CONFIRMATION_FAILS} tries, other bytes than were sent are there, or none",
            "Distrust this store, or what stands between, until it is known why.",
        )

    async def get(self, key: str) -> bytes:
        """The whole object. Raises ObjectMissing.

        A body that does not fit the store's own checksum was probably damaged on its way and is read again. Where that
        does not change in several tries, what came last is returned: whoever asks knows better what it must be.
        """
        for _ in range(_READS_BEFORE_DAMAGE_IS_BELIEVED):
            try:
                return await self._read(lambda: self._client.get_object(key))
            except BodyDamaged as error:
                damaged = error
        log.warning("%s It has been read %d times.", damaged, _READS_BEFORE_DAMAGE_IS_BELIEVED)
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

    async def delete(self, keys: Sequence[str]) -> None:
        """Deletes objects; those that are not there are fine.

        Raises StoreRejected when the store refuses one for good; the others are gone then.
        """
        for start in range(0, len(keys), MAX_KEYS_PER_DELETE):
            await self._delete_batch(keys[start : start + MAX_KEYS_PER_DELETE])

    async def check_bucket(self) -> None:
        """Returns when the bucket exists and may be looked at."""
        await self._read(self._client.check_bucket)

    async def probe(self, prefix: str) -> StoreCapabilities:
        """Finds out which checksums this store honours, sets `capabilities` accordingly, and returns them.

        Writes and deletes a few small objects directly below `prefix` + "/", always of the same names, so that what
        a crash left is removed by the next probe. Raises StoreRejected when the store takes no object at all.
        """
        keys = [f"{prefix}/probe-{name}" for name in ("right", "wrong-crc32c", "wrong-md5")]
        right, wrong_crc32c, wrong_md5 = (_Sent.seal(key, _PROBE_BODY) for key in keys)
        try:
            receipt, head = await self._put_and_look(right)
            self.capabilities = StoreCapabilities(
                rejects_wrong_crc32c=await self._rejects(wrong_crc32c, wrong_crc32c.crc32c ^ 1, None),
                rejects_wrong_md5=await self._rejects(wrong_md5, None, hashlib.md5(b"other").digest()),
                put_returns_crc32c=receipt.crc32c == right.crc32c,
                head_returns_crc32c=head is not None and head.crc32c == right.crc32c,
                etag_is_md5=head is not None and head.etag == right.md5.hex(),
            )
            reach("probe.stored")
        finally:
            await self.delete(keys)
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

    async def _confirm(self, sent: _Sent, receipt: PutReceipt) -> bool:
        if self.capabilities.confirmation is not Confirmation.READ_BACK:
            head = await self.head(sent.key)
            if head is not None and self._shows(head, sent, receipt):
                return True
        return await self._holds(sent)

    def _shows(self, head: StoredObject, sent: _Sent, receipt: PutReceipt) -> bool:
        if _is_older(head, receipt):
            # Of the same content perhaps, but deleted since: an old view, which says nothing of this PUT.
            return False
        if head.size != len(sent.body) or (self.capabilities.etag_is_md5 and head.etag != sent.md5.hex()):
            return False
        match self.capabilities.confirmation:
            case Confirmation.HEAD_CHECKSUM:
                return head.crc32c == sent.crc32c
            case Confirmation.ETAG_MD5:
                return True
            case Confirmation.PUT_CHECKSUM:
                return receipt.crc32c == sent.crc32c and head.etag == receipt.etag != ""
            case Confirmation.READ_BACK:
                return False

    async def _holds(self, sent: _Sent) -> bool:
        try:
            return await self.get(sent.key) == sent.body
        except ObjectMissing:
            return False

    async def _delete_batch(self, keys: Sequence[str]) -> None:
        remaining = keys

        async def delete_remaining() -> None:
            nonlocal remaining
            failures = await self._in_thread(lambda: self._client.delete_objects(remaining), may_abandon=False)
            remaining = list(failures)
            _raise_worst(list(failures.values()))

        self._observe("before-delete", keys)
        await self._persistence.repeat(delete_remaining)
        self._observe("after-delete", keys)

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


def _is_older(head: StoredObject, receipt: PutReceipt) -> bool:
    if head.modified_at is None or receipt.began_at is None:
        return False
    return head.modified_at < receipt.began_at - _LAST_MODIFIED_TOLERANCE


def _raise_worst(errors: Sequence[StoreError]) -> None:
    """Raises the error that is worth waiting for, if there is one, and else any."""
    for error in sorted(errors, key=lambda candidate: not isinstance(candidate, StoreUnavailable)):
        raise error
