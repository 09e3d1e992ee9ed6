"""Uploads and copies: sent until the store is seen to hold what was sent."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from mirrorfs.datastore.content import Content, are_equal
from mirrorfs.objectstore.answers import MD5_ETAG, Precondition, PutReceipt, StoredObject
from mirrorfs.objectstore.capabilities import Confirmation, StoreCapabilities
from mirrorfs.objectstore.checksums import calculate_crc32c, calculate_md5
from mirrorfs.objectstore.errors import (
    ChecksumRefused,
    ConfirmationFailed,
    CopyUnsupported,
    ObjectChanged,
    ObjectLocked,
    ObjectMissing,
    ObjectTooLarge,
    StoreError,
    StoreReason,
    StoreRejected,
    StoreUnavailable,
)
from mirrorfs.objectstore.features import Feature
from mirrorfs.objectstore.patience import PatientRequests
from mirrorfs.objectstore.reading import Reading

log = logging.getLogger(__name__)

_PUTS_BEFORE_CONFIRMATION_FAILS = 5
_ETAGS_THAT_TELL_A_CHANGE = 3
_SAMPLE_SECONDS = 60.0
_WRONG_REFUSALS_THAT_TELL = 2
_LAST_MODIFIED_TOLERANCE = 2.0
"""In seconds: one that the headers have no digits for, and one that the clocks inside a store may differ by."""
SAMPLE_BODY = b"mirrorfs asks what this store honours; this object is deleted at once.\n"
"""What is put to find out how a store takes objects."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What must be found below a key: size and CRC32C of the content, its MD5 in hex and all of it where known."""

    key: str
    size: int
    crc32c: int
    md5: str | None = None
    body: Content | None = None

    def is_met_by(self, found: Content) -> bool:
        """Whether these bytes are it."""
        if self.body is not None:
            return are_equal(found, self.body)
        if self.md5 is not None and calculate_md5(found).hex() != self.md5:
            return False
        return len(found) == self.size and calculate_crc32c(found) == self.crc32c

    def with_md5(self) -> Expected:
        """The same with the MD5, if the content is known."""
        if self.body is None or self.md5 is not None:
            return self
        return dataclasses.replace(self, md5=calculate_md5(self.body).hex())


@dataclass(frozen=True, slots=True)
class Sent:
    """What is being stored, with the checksums that must come out at the other end; its MD5 where that is needed."""

    key: str
    body: Content
    crc32c: int
    md5: bytes | None

    @classmethod
    def seal(cls, key: str, body: Content, *, crc32c: int | None = None, with_md5: bool = True) -> Sent:
        """Calculates the checksums, of the CRC32C only where it is not given."""
        crc32c = calculate_crc32c(body) if crc32c is None else crc32c
        return cls(key, body, crc32c, calculate_md5(body) if with_md5 else None)

    @property
    def expected(self) -> Expected:
        """What must be found then."""
        md5 = None if self.md5 is None else self.md5.hex()
        return Expected(self.key, len(self.body), self.crc32c, md5, self.body)


class Uploads:
    """The writing half of `ObjectStore`."""

    def __init__(self, requests: PatientRequests, reading: Reading, capabilities: StoreCapabilities) -> None:
        self.capabilities = capabilities
        self.sample_key: str | None = None
        self._requests = requests
        self._reading = reading
        self._etags_of_another_kind = 0
        self._sample_passes_until: dict[str, float] = {}

    async def put(self, key: str, body: Content, crc32c: int | None = None) -> StoredObject:
        """See `ObjectStore.put`."""
        if self.capabilities.needs_md5 or crc32c is None:
            sent = await self._requests.in_thread(lambda: self._seal(key, body, crc32c), may_abandon=True)
        else:
            # Nothing is left to be calculated, which is not worth a thread.
            sent = self._seal(key, body, crc32c)
        return await self._store(f"store {key} in", sent.expected, lambda: self._put_once(sent))

    async def put_over(self, key: str, body: Content, precondition: Precondition) -> None:
        """See `ObjectStore.put_over`."""
        sent = await self._requests.in_thread(lambda: Sent.seal(key, body), may_abandon=True)
        for _ in range(_WRONG_REFUSALS_THAT_TELL):
            try:
                await self._store(f"store {key} in", sent.expected, lambda: self._put_once(sent, precondition))
                return
            except ObjectChanged as error:
                # It may be our own that stands there: an answer was lost, or an old view was taken for the new one.
                if await self.holds(sent.expected):
                    return
                head = await self._requests.read(lambda: self._requests.client.head_object(key))
                if precondition.etag != (None if head is None else head.etag):
                    raise
                refusal = error
        # It refuses what it should not, as one whose ETags are others each time that they are asked for.
        self._requests.client.features.note_refusal(Feature.CONDITIONAL_PUT, refusal.cause)
        await self.put(key, body)

    def _seal(self, key: str, body: Content, crc32c: int | None) -> Sent:
        return Sent.seal(key, body, crc32c=crc32c, with_md5=self.capabilities.needs_md5)

    async def copy(self, source_key: str, key: str, *, size: int, crc32c: int, body_md5: bytes | None) -> StoredObject:
        """See `ObjectStore.copy`."""
        md5 = body_md5.hex() if body_md5 is not None else await self._md5_of_source(source_key)
        expected = Expected(key, size, crc32c, md5)
        return await self._store(f"copy {source_key} to {key} in", expected, lambda: self._copy_once(source_key, key))

    async def _md5_of_source(self, source_key: str) -> str | None:
        """What its ETag says, where that is needed."""
        if self.capabilities.confirmation is not Confirmation.ETAG_MD5:
            return None
        source = await self._requests.read(lambda: self._requests.client.head_object(source_key))
        if source is None:
            raise ObjectMissing(f"copy {source_key} in {self._requests.place}", "there is no such object")
        # Of an object that was put in parts, it is none.
        return source.etag if MD5_ETAG.fullmatch(source.etag) else None

    async def _put_once(self, sent: Sent, precondition: Precondition | None = None) -> PutReceipt:
        client = self._requests.client

        def send() -> PutReceipt:
            return client.put_object(sent.key, sent.body, crc32c=sent.crc32c, md5=sent.md5, precondition=precondition)

        self._requests.observe("before-put", [sent.key])
        receipt = await self._requests.repeat_write(_Sending(self, sent.expected, send).once)
        self._requests.observe("after-put", [sent.key])
        return receipt

    async def _copy_once(self, source_key: str, key: str) -> PutReceipt:
        client = self._requests.client
        self._requests.observe("before-put", [key])
        receipt = await self.write(lambda: client.copy_object(source_key, key))
        self._requests.observe("after-put", [key])
        return receipt

    async def write(self, request: Callable[[], PutReceipt]) -> PutReceipt:
        """Puts an object in one request, repeated while the store takes none."""
        return await self._requests.repeat_write(lambda: self.try_to_write(request))

    async def try_to_write(self, request: Callable[[], PutReceipt]) -> PutReceipt:
        """Tries it once. A refusal that meets any object is an outage: StoreUnavailable."""
        try:
            return await self._requests.in_thread(request, may_abandon=False)
        except (ChecksumRefused, CopyUnsupported, ObjectChanged, ObjectLocked):
            raise
        except StoreRejected as refusal:
            if await self._refuses_a_sample_too(refusal):
                raise StoreUnavailable(refusal.action, refusal.cause, StoreReason.REFUSES_WRITES) from None
            raise

    async def _refuses_a_sample_too(self, refusal: StoreRejected) -> bool:
        """Whether a small object of our own meets the same refusal; that is deleted by each probe, and here.

        Where that cannot be told, it is the first refusal that counts.
        """
        key, now = self.sample_key, trio.current_time()
        if key is None or not refusal.code or now < self._sample_passes_until.get(refusal.code, now):
            return False
        sample, client = Sent.seal(key, SAMPLE_BODY), self._requests.client

        def put() -> PutReceipt:
            return client.put_object(key, sample.body, crc32c=sample.crc32c, md5=sample.md5)

        try:
            await self._requests.in_thread(put, may_abandon=False)
            await self._requests.in_thread(lambda: client.delete_objects([key]), may_abandon=False)
        except StoreError as error:
            return isinstance(error, StoreRejected) and error.code == refusal.code
        # Of many objects that are refused so, not each is followed by two requests more.
        self._sample_passes_until[refusal.code] = now + _SAMPLE_SECONDS
        return False

    async def _store(self, action: str, expected: Expected, send: Callable[[], Awaitable[PutReceipt]]) -> StoredObject:
        """Sends until what is expected is there. The action ends with a preposition that the bucket follows."""
        for attempt in range(_PUTS_BEFORE_CONFIRMATION_FAILS):
            if attempt > 0:
                await self._requests.pause(attempt)
            try:
                receipt = await send()
            except ChecksumRefused:
                # The checksums are right, so the body was damaged on its way.
                continue
            if await self._confirm(expected, receipt):
                return StoredObject(expected.key, expected.size, receipt.etag, expected.crc32c)
        raise ConfirmationFailed(
            f"{action} {self._requests.place}",
            f"after each of {_PUTS_BEFORE_CONFIRMATION_FAILS} tries, other bytes than were sent are there, or none",
            "Distrust this store, or what stands between, until it is known why.",
        )

    async def _confirm(self, expected: Expected, receipt: PutReceipt) -> bool:
        if self.capabilities.confirmation is Confirmation.READ_BACK:
            return await self.holds(expected)
        head = await self._requests.read(lambda: self._requests.client.head_object(expected.key))
        if head is not None and head.crc32c is None and expected.md5 is None and self.capabilities.etag_is_md5:
            expected = await self._requests.in_thread(expected.with_md5, may_abandon=True)
        if head is not None and self.shows(head, expected, receipt):
            self._etags_of_another_kind = 0
            return True
        if not await self.holds(expected):
            return False
        if head is not None and not _is_older(head, receipt) and head.size == expected.size:
            self._notice_kind_of_etag(head, expected)
        return True

    def _notice_kind_of_etag(self, head: StoredObject, expected: Expected) -> None:
        """Of an object that is known to be right. The bucket's encryption may have been changed meanwhile."""
        if not self.capabilities.etag_is_md5 or expected.md5 is None or head.etag == expected.md5:
            return
        self._etags_of_another_kind += 1
        if self._etags_of_another_kind >= _ETAGS_THAT_TELL_A_CHANGE:
            self.capabilities = dataclasses.replace(self.capabilities, etag_is_md5=False)
            log.warning(
                "The store's ETags are no MD5s any more (was the bucket's encryption changed?); what is sent is "
                "confirmed by %s from now on.",
                self.capabilities.confirmation.value,
            )

    def shows(self, head: StoredObject, expected: Expected, receipt: PutReceipt) -> bool:
        """Whether a HEAD proves that what is expected is there since the PUT of this receipt."""
        return proves(self.capabilities, head, expected, receipt)

    async def holds(self, expected: Expected) -> bool:
        """Whether the object, read, is what is expected."""
        try:
            found = await self._reading.get(expected.key, expected.size, None, None)
        except (ObjectMissing, ObjectTooLarge):
            return False
        return await self._requests.in_thread(lambda: expected.is_met_by(found), may_abandon=True)


class _Sending:
    """The tries of one PUT: when its answer was lost, the object is looked for before it is sent again."""

    def __init__(self, uploads: Uploads, expected: Expected, send: Callable[[], PutReceipt]) -> None:
        self._uploads = uploads
        self._expected = expected
        self._send = send
        self._lost_since: float | None = None

    async def once(self) -> PutReceipt:
        """One try."""
        if self._lost_since is not None:
            receipt = await self._look()
            if receipt is not None:
                return receipt
        began = trio.current_time()
        try:
            return await self._uploads.try_to_write(self._send)
        except StoreUnavailable as error:
            if error.may_be_done and self._lost_since is None:
                self._lost_since = began
            raise

    async def _look(self) -> PutReceipt | None:
        """A receipt for what has arrived after all; None where nothing proves that."""
        assert self._lost_since is not None
        requests, key = self._uploads._requests, self._expected.key
        if self._uploads.capabilities.confirmation not in (Confirmation.HEAD_CHECKSUM, Confirmation.ETAG_MD5):
            return None
        try:
            head = await requests.in_thread(lambda: requests.client.head_object(key), may_abandon=True)
        except StoreRejected as error:
            log.info("Whether an object has arrived is not known, so it is sent again. %s", error)
            return None
        if head is None or head.modified_at is None or head.seen_at is None:
            return None
        receipt = PutReceipt(head.etag, None, head.seen_at - (trio.current_time() - self._lost_since))
        return receipt if self._uploads.shows(head, self._expected, receipt) else None


def proves(capabilities: StoreCapabilities, head: StoredObject, expected: Expected, receipt: PutReceipt) -> bool:
    """Whether a HEAD proves that what is expected is there since the PUT of this receipt."""
    if _is_older(head, receipt):
        # Of the same content perhaps, but deleted since: an old view, which says nothing of this PUT.
        return False
    if head.size != expected.size:
        return False
    confirmation = capabilities.confirmation
    if confirmation is Confirmation.HEAD_CHECKSUM and head.crc32c is not None:
        return head.crc32c == expected.crc32c
    # There are stores whose copies have no checksum.
    compares_md5 = capabilities.etag_is_md5 and expected.md5 is not None
    if compares_md5 and head.etag != expected.md5:
        return False
    match confirmation:
        case Confirmation.HEAD_CHECKSUM | Confirmation.ETAG_MD5:
            return compares_md5
        case Confirmation.PUT_CHECKSUM:
            return receipt.crc32c == expected.crc32c and head.etag == receipt.etag != ""
        case Confirmation.READ_BACK:
            return False


def _is_older(head: StoredObject, receipt: PutReceipt) -> bool:
    if head.modified_at is None or receipt.began_at is None:
        return False
    return head.modified_at < receipt.began_at - _LAST_MODIFIED_TOLERANCE
