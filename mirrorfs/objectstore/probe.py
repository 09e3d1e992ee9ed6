"""Finding out what a store honours, and what a bucket keeps."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from typing import TypeVar

from mirrorfs.objectstore.answers import Precondition, PutReceipt, StoredObject
from mirrorfs.objectstore.capabilities import StoreCapabilities
from mirrorfs.objectstore.deletions import Deletions
from mirrorfs.objectstore.errors import ObjectChanged, StoreError, StoreRejected, StoreUnavailable
from mirrorfs.objectstore.features import Feature
from mirrorfs.objectstore.patience import PatientRequests
from mirrorfs.objectstore.uploads import SAMPLE_BODY, Expected, Sent, Uploads
from mirrorfs.steps import reach

log = logging.getLogger(__name__)

Result = TypeVar("Result")

_PUTS_OF_A_PROBE = 5
_TRIES_OF_A_QUESTION = 3
_PUTS_THAT_TELL_OF_NO_CONDITION = 2
_MD5_OF_SOMETHING_ELSE = hashlib.md5(b"other", usedforsecurity=False).digest()


class Probe:
    """See `ObjectStore.probe`."""

    def __init__(self, requests: PatientRequests, uploads: Uploads, deletions: Deletions, prefix: str) -> None:
        self._requests = requests
        self._uploads = uploads
        self._deletions = deletions
        self._prefix = prefix

    async def run(self) -> None:
        """Finds out, and sets the capabilities."""
        client = self._requests.client
        keys = [f"{self._prefix}/probe-{name}" for name in ("right", "wrong-crc32c", "wrong-md5", "copy")]
        self._uploads.sample_key = self._deletions.own_key = keys[0]
        right, wrong_crc32c, wrong_md5, copy = (Sent.seal(key, SAMPLE_BODY) for key in keys)
        try:
            receipt, head = await self._put_and_look(right)
            object_lock = await self._ask(Feature.OBJECT_LOCK_QUESTION, client.object_lock_rule)
            self._uploads.capabilities = StoreCapabilities(
                rejects_wrong_crc32c=await self._rejects(wrong_crc32c, wrong_crc32c.crc32c ^ 1, None),
                rejects_wrong_md5=await self._rejects(wrong_md5, None, _MD5_OF_SOMETHING_ELSE),
                put_returns_crc32c=receipt.crc32c == right.crc32c,
                head_returns_crc32c=head is not None and head.crc32c == right.crc32c,
                etag_is_md5=head is not None and head.etag == right.expected.md5,
                copies=await self._copies(right.key, copy.expected),
                conditional_puts=head is not None and await self._keeps_what_stands(right),
                # There is no Object Lock without versions, even where only the one may be asked for.
                versioned=object_lock is not None
                or bool(await self._ask(Feature.VERSIONING_QUESTION, client.is_versioned)),
                object_lock=object_lock,
            )
            reach("probe.stored")
        finally:
            for error in (await self._deletions.delete_each(keys)).values():
                log.debug("An object of the probe stays behind. %s", error)

    async def _put_and_look(self, sent: Sent) -> tuple[PutReceipt, StoredObject | None]:
        client = self._requests.client
        for attempt in range(1, _PUTS_OF_A_PROBE + 1):
            # Without Content-MD5, so that a store which only echoes it is not taken for one that calculates.
            receipt = await self._uploads.write(
                lambda: client.put_object(sent.key, sent.body, crc32c=sent.crc32c, md5=None)
            )
            head = await self._requests.read(lambda: client.head_object(sent.key))
            if head is not None:
                break
            # One object that is lost or not seen yet must not make every later upload expensive.
            await self._requests.pause(attempt)
        return receipt, head

    async def _keeps_what_stands(self, sent: Sent) -> bool:
        """Whether an object that stands there is kept when another is to be put only where there is none."""
        client = self._requests.client
        # One alone that is answered with success may be one that somebody before the store has taken, and dropped.
        for _ in range(_PUTS_THAT_TELL_OF_NO_CONDITION):
            try:
                await self._uploads.write(
                    lambda: client.put_object(
                        sent.key, sent.body, crc32c=sent.crc32c, md5=None, precondition=Precondition(None)
                    )
                )
            except ObjectChanged:
                return True
            if client.features.refuses(Feature.CONDITIONAL_PUT):
                return False
        client.features.note_refusal(
            Feature.CONDITIONAL_PUT, "nothing, and put an object in the place of another that it was to keep"
        )
        return False

    async def _copies(self, source_key: str, expected: Expected) -> bool:
        client = self._requests.client
        for attempt in range(1, _PUTS_OF_A_PROBE + 1):
            receipt = await self._ask(Feature.COPY, lambda: client.copy_object(source_key, expected.key), expected.key)
            if receipt is None:
                return False
            if await self._uploads.holds(expected):
                return True
            await self._requests.pause(attempt)
        return False

    async def _ask(self, feature: Feature, question: Callable[[], Result], prefix: str | None = None) -> Result | None:
        """The answer, or None where the store refuses it: at once, or each time while it serves others.

        Many a policy denies what nobody has thought of, and that must not be waited out as other denials are. That
        others are served is seen by a look at what is below the prefix.
        """
        client, look_at = self._requests.client, self._prefix if prefix is None else prefix
        for attempt in range(_TRIES_OF_A_QUESTION):
            if attempt > 0:
                await self._requests.read(lambda: client.check_bucket(look_at))
                await self._requests.pause(attempt)
            try:
                return await self._requests.in_thread(question, may_abandon=False)
            except StoreUnavailable as error:
                refusal: StoreError = error
            except StoreError as error:
                refusal = error
                break
        if not (feature is Feature.OBJECT_LOCK_QUESTION and says_that_there_is_no_lock(refusal)):
            client.features.note_refusal(feature, refusal.cause)
        return None

    async def _rejects(self, sent: Sent, crc32c_value: int | None, md5: bytes | None) -> bool:
        client = self._requests.client
        try:
            await self._requests.repeat_write(
                lambda: self._requests.in_thread(
                    lambda: client.put_object(sent.key, sent.body, crc32c=crc32c_value, md5=md5), may_abandon=False
                )
            )
        except StoreRejected:
            return True
        return False


def says_that_there_is_no_lock(refusal: StoreError) -> bool:
    """Whether it is only how stores answer the question about Object Lock for a bucket that has none."""
    no = ("ObjectLockConfigurationNotFoundError", "NoSuchObjectLockConfiguration")
    return isinstance(refusal, StoreRejected) and refusal.code in no
