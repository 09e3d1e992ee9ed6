"""Trying one by one what a mirror needs of a store, as somebody who stands beside it wants to know it.

Where `Probe` finds out how to work with a store, this finds out whether one may: each right alone, with the store's own
words where it refuses. What is put is removed again.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from mirrorfs.objectstore.answers import Precondition
from mirrorfs.objectstore.checksums import calculate_crc32c
from mirrorfs.objectstore.client import S3Client
from mirrorfs.objectstore.errors import ObjectChanged, StoreError
from mirrorfs.objectstore.probe import says_that_there_is_no_lock
from mirrorfs.objectstore.url import StoreOptions

_BODY = b"mirrorfs tries whether it may store something here, and removes it again.\n"
# In seconds; with more, a mirror has nothing go because of its age.
_LARGEST_CLOCK_DIFFERENCE = 300.0


class Verdict(Enum):
    """What a finding means for a mirror."""

    GOOD = "ok"
    WITHOUT = "without"
    """A mirror does without it."""
    BAD = "fails"
    """No mirror can work so."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was tried: what, how it went, and a sentence; `right` is the S3 action that it takes."""

    subject: str
    verdict: Verdict
    said: str
    right: str = ""


class Trial:
    """Each method blocks; each request is tried once."""

    def __init__(self, client: S3Client, options: StoreOptions, own_prefix: str) -> None:
        """Objects are put below `own_prefix`, which is a key of mirrorfs' own, under a name that nobody else has."""
        self._client = client
        self._options = options
        self._prefix = own_prefix
        self._key = f"{own_prefix}/check-{secrets.token_hex(8)}"
        self._copy = f"{self._key}-copy"

    def run(self) -> Iterator[Finding]:
        """Try everything; where the store cannot be used at all, that is the last finding."""
        access = self._tried("access", "s3:ListBucket", lambda: self._client.check_bucket(f"{self._prefix}/"))
        yield access
        if access.verdict is Verdict.BAD:
            return
        yield self._way()
        yield Finding("region", Verdict.GOOD, self._client.region or "none is named, the store does not ask for one")
        yield self._clock()
        try:
            yield from self._rights()
        finally:
            removed = self._tried("delete", "s3:DeleteObject", self._remove)
        yield removed
        yield self._versioning()
        yield self._lock()

    def _way(self) -> Finding:
        endpoint = self._client.endpoint
        if endpoint.startswith("http://"):
            return Finding("tls", Verdict.WITHOUT, f"{endpoint} is plain HTTP: who listens on the way reads along")
        trusts = "the certificate of the fingerprint" if self._options.fingerprint else "a certificate vouched for"
        return Finding("tls", Verdict.GOOD, f"{endpoint}, with {trusts}")

    def _tried(self, subject: str, right: str, request: Callable[[], object], said: str = "allowed") -> Finding:
        try:
            request()
        except StoreError as error:
            return Finding(subject, Verdict.BAD, str(error), right)
        return Finding(subject, Verdict.GOOD, said, right)

    def _clock(self) -> Finding:
        try:
            difference = self._client.clock_difference(f"{self._prefix}/")
        except StoreError as error:
            return Finding("clock", Verdict.WITHOUT, str(error))
        if difference is None:
            return Finding(
                "clock", Verdict.WITHOUT, "the store does not tell the time: ages go by this machine's clock"
            )
        if abs(difference) > _LARGEST_CLOCK_DIFFERENCE:
            said = f"the store's differs by {difference:.0f} s: nothing goes because of its age until one is set right"
            return Finding("clock", Verdict.WITHOUT, said)
        return Finding("clock", Verdict.GOOD, f"differs from the store's by {abs(difference):.0f} s")

    def _rights(self) -> Iterator[Finding]:
        put = self._tried("put", "s3:PutObject", lambda: self._put(None))
        yield put
        if put.verdict is Verdict.BAD:
            return
        yield self._tried("head", "s3:GetObject", lambda: self._client.look(self._key))
        yield self._read()
        copied = self._tried(
            "copy", "s3:PutObject, s3:GetObject", lambda: self._client.copy_object(self._key, self._copy)
        )
        yield _optional(copied, "what is kept after a removal is read and sent again")
        yield self._conditional()

    def _put(self, precondition: Precondition | None) -> None:
        self._client.put_object(self._key, _BODY, crc32c=calculate_crc32c(_BODY), md5=None, precondition=precondition)

    def _read(self) -> Finding:
        try:
            body = bytes(self._client.get_object(self._key, len(_BODY)))
        except StoreError as error:
            return Finding("get", Verdict.BAD, str(error), "s3:GetObject")
        if body != _BODY:
            return Finding("get", Verdict.BAD, "what is read is not what was sent", "s3:GetObject")
        return Finding("get", Verdict.GOOD, "allowed, and what is read is what was sent", "s3:GetObject")

    def _conditional(self) -> Finding:
        what = "two mirrors that claim the name at the same moment are told apart a little later"
        try:
            if not self._is_refused(Precondition(None)):
                return self._without_conditions(f"not honoured: {what}")
            # A mirror renews its claim over the one that it has read. A store may take another spelling of the ETag.
            if self._is_refused(Precondition(self._client.look(self._key).etag)):
                return self._without_conditions(f"refused although what was read still stands there: {what}")
        except StoreError as error:
            return self._without_conditions(f"{what}. {error}")
        return Finding("conditional put", Verdict.GOOD, "honoured", "s3:PutObject")

    def _is_refused(self, precondition: Precondition) -> bool:
        try:
            self._put(precondition)
        except ObjectChanged:
            return True
        return False

    def _without_conditions(self, said: str) -> Finding:
        return Finding("conditional put", Verdict.WITHOUT, said, "s3:PutObject")

    def _remove(self) -> None:
        for failure in self._client.delete_objects([self._key, self._copy]).values():
            raise failure

    def _versioning(self) -> Finding:
        right = "s3:GetBucketVersioning"
        try:
            is_versioned = self._client.is_versioned()
        except StoreError as error:
            return Finding("versioning", Verdict.WITHOUT, f"taken for off. {error}", right)
        said = "on: what is replaced or deleted stays as a version" if is_versioned else "off"
        return Finding("versioning", Verdict.GOOD, said, right)

    def _lock(self) -> Finding:
        right = "s3:GetBucketObjectLockConfiguration"
        try:
            rule = self._client.object_lock_rule()
        except StoreError as error:
            if says_that_there_is_no_lock(error):
                return Finding("object lock", Verdict.GOOD, "off", right)
            return Finding("object lock", Verdict.WITHOUT, f"taken for off. {error}", right)
        if rule is None:
            return Finding("object lock", Verdict.GOOD, "off", right)
        mode = "on, without a default retention" if rule.mode is None else f"on, {rule.mode}"
        said = f"{mode}. Setting a lock (s3:PutObjectRetention) is not tried: that object could not be removed"
        return Finding("object lock", Verdict.GOOD, said, right)


def _optional(finding: Finding, without: str) -> Finding:
    if finding.verdict is not Verdict.BAD:
        return finding
    return Finding(finding.subject, Verdict.WITHOUT, f"{without}. {finding.said}", finding.right)
