"""One bucket through S3: synchronous, for several threads at once, each request tried once.

What comes back is examined (`examination`) and read (`documents`, `listings`); what is left out is asked for otherwise.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mirrorfs.datastore.content import Content
from mirrorfs.objectstore import documents, listings
from mirrorfs.objectstore.answers import MD5_ETAG, CheckBeginning, Precondition, PutReceipt, StoredObject
from mirrorfs.objectstore.bodies import body_of
from mirrorfs.objectstore.checksums import calculate_crc32c, calculate_md5
from mirrorfs.objectstore.errors import (
    BodyDamaged,
    CopyUnsupported,
    ObjectChanged,
    ObjectMissing,
    StoreError,
    StoreReason,
    StoreRejected,
    StoreUnavailable,
)
from mirrorfs.objectstore.features import Feature
from mirrorfs.objectstore.listing_requests import announced_size, described, etag_of
from mirrorfs.objectstore.lock_requests import LockRequests
from mirrorfs.objectstore.refusals import MISSING_CODES, UNSUPPORTED_CODES, Asked, Refusal, translated
from mirrorfs.objectstore.throttle import Throttle
from mirrorfs.objectstore.transport import Answer, BodyLimit
from mirrorfs.objectstore.url import StoreOptions

log = logging.getLogger(__name__)

MAX_KEYS_PER_DELETE = 1000
"""https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html"""
_KEYS_PER_DELETE_ONE_BY_ONE = 20
_ETAGS_THAT_TELL_THE_KIND = 3
_EXPLAIN_NOTHING = frozenset(
    {
        StoreReason.UNREACHABLE,
        StoreReason.PROXY_FAILED,
        StoreReason.TLS_FAILED,
        StoreReason.NOT_S3,
        StoreReason.NO_CREDENTIALS,
        StoreReason.LOCAL_SETTING,
    }
)
# So short a body (in bytes) tells the kind of ETags also where its MD5 is not needed otherwise.
_CHEAP_TO_SUM = 16 * 1024
# The longest index that PBS makes, and more; what is longer is read by nobody.
_OF_UNKNOWN_SIZE = BodyLimit(1024 * 1024 * 1024)
# What a store answers to a header that it does not know or want; the object itself is not what it refuses.
_CODES_OF_AN_UNKNOWN_HEADER = UNSUPPORTED_CODES | {
    "InvalidArgument",
    "InvalidRequest",
    "UnsupportedArgument",
    "UnsupportedHeader",
    "InvalidHeader",
    "400",
    "417",
}
# The last: somebody else was just putting it.
_CODES_OF_A_PRECONDITION = frozenset({"PreconditionFailed", "412", "ConditionalRequestConflict"})


class S3Client(LockRequests):
    """The requests that mirrorfs makes, each tried once. Keys are full keys in the bucket.

    Every method raises StoreError and nothing else: StoreUnavailable, StoreRejected, or what its own text says. The
    boto3 client is made at the first request, and made anew when the store did not accept the credentials, so that
    repaired ones are found without a restart.
    """

    def __init__(
        self,
        bucket: str,
        options: StoreOptions,
        *,
        parallelism: int = 8,
        is_chunk: Callable[[str], bool] = lambda key: False,
        throttle: Throttle | None = None,
    ) -> None:
        """`parallelism` is the number of threads that each get a connection of their own.

        `is_chunk` tells the keys whose objects get the storage class of chunks. `throttle` says how fast all may be.
        """
        super().__init__(bucket, options, parallelism=parallelism, throttle=throttle)
        self._is_chunk = is_chunk
        self._gives_md5_etags = False
        self._etags_of_another_kind = 0
        self._accepts_checksums: set[str] = set()

    @property
    def keys_per_delete(self) -> int:
        """How many keys `delete_objects` takes at most."""
        one_by_one = self.features.refuses(Feature.MULTI_DELETE)
        return _KEYS_PER_DELETE_ONE_BY_ONE if one_by_one else MAX_KEYS_PER_DELETE

    # -- objects -------------------------------------------------------------------------------------------

    def put_object(
        self,
        key: str,
        body: Content,
        *,
        crc32c: int | None,
        md5: bytes | None,
        precondition: Precondition | None = None,
    ) -> PutReceipt:
        """Stores an object in one request, with checksums of the body for the store to compare.

        Where they do not fit, a store that honours them refuses: StoreRejected, mostly as ChecksumRefused. A store
        that refuses the header of the CRC32C, or a precondition, as such gets the object, and all later ones, without.
        Raises ObjectChanged where the precondition is not met.
        """
        if precondition is None or self.features.refuses(Feature.CONDITIONAL_PUT):
            return self._put(key, body, crc32c, md5)
        try:
            return self._put(key, body, crc32c, md5, precondition)
        except ObjectMissing as error:
            raise ObjectChanged(error.action, error.cause) from None
        except StoreRejected as error:
            if error.code in _CODES_OF_A_PRECONDITION:
                raise ObjectChanged(error.action, error.cause, code=error.code) from None
            if error.code not in _CODES_OF_AN_UNKNOWN_HEADER:
                raise
            refusal = error
        try:
            receipt = self._put(key, body, crc32c, md5)
        except StoreRejected:
            # It is not the precondition that it refuses.
            raise refusal from None
        self.features.note_refusal(Feature.CONDITIONAL_PUT, refusal.cause)
        return receipt

    def _put(
        self, key: str, body: Content, crc32c: int | None, md5: bytes | None, precondition: Precondition | None = None
    ) -> PutReceipt:
        headers = self._headers_of_new_object(key)
        if precondition is not None:
            headers |= precondition.parameters
        # Of what is to take an object's place S3 says so when there is none.
        may_be_missing = precondition is not None and precondition.etag is not None
        if md5 is not None:
            headers["ContentMD5"] = base64.b64encode(md5).decode("ascii")

        def put(checksum: Mapping[str, Any]) -> Answer:
            with self._connection.requesting(f"store {key} in", key, writes=not may_be_missing) as request:
                request.objects.put_object(Bucket=self.bucket, Key=key, Body=body_of(body), **headers, **checksum)
                return request.answer()

        checksum = None if crc32c is None else {"ChecksumCRC32C": encode_crc32c(crc32c)}
        answer = self._with_checksum("put", put, checksum)
        etag = etag_of(answer)
        if md5 is not None or len(body) <= _CHEAP_TO_SUM:
            self._notice_kind_of_etag(etag == (calculate_md5(body) if md5 is None else md5).hex())
        return PutReceipt(etag, documents.crc32c(answer.headers), _began_at(answer))

    def _headers_of_new_object(self, key: str) -> dict[str, Any]:
        options = self._options
        named = {
            "StorageClass": options.chunk_storage_class if self._is_chunk(key) else options.storage_class,
            "ServerSideEncryption": options.encryption,
            "SSEKMSKeyId": options.kms_key_id,
        }
        return {name: value for name, value in named.items() if value is not None}

    def _notice_kind_of_etag(self, is_md5: bool) -> None:
        """Of what was just put; which kind there is may change, with the bucket's encryption."""
        if is_md5:
            self._gives_md5_etags, self._etags_of_another_kind = True, 0
            return
        # One alone may be that of a body that was damaged on its way.
        self._etags_of_another_kind += 1
        if self._etags_of_another_kind >= _ETAGS_THAT_TELL_THE_KIND:
            self._gives_md5_etags = False

    def _with_checksum(
        self, kind: str, ask: Callable[[Mapping[str, Any]], Answer], checksum: Mapping[str, Any] | None
    ) -> Answer:
        """Asks with the parameters about a checksum, and without them where those are what the store refuses.

        Once a request of this kind has been accepted with them, they are not what is wrong with a later one.
        """
        if checksum is None or self._options.checksums == "off" or self.features.refuses(Feature.CHECKSUMS):
            return ask({})
        try:
            answer = ask(checksum)
        except StoreRejected as error:
            may_be_the_header = self._options.checksums == "auto" and error.code in _CODES_OF_AN_UNKNOWN_HEADER
            if kind in self._accepts_checksums or not may_be_the_header:
                raise
            refusal = error
        else:
            self._accepts_checksums.add(kind)
            return answer
        try:
            answer = ask({})
        except StoreRejected:
            # It is not the header that it refuses.
            raise refusal from None
        self.features.note_refusal(Feature.CHECKSUMS, refusal.cause)
        return answer

    def copy_object(self, source_key: str, key: str) -> PutReceipt:
        """Has the store copy an object of at most 5 GB within the bucket, with its metadata.

        Raises ObjectMissing when there is no source, CopyUnsupported when the store says that it cannot.
        """
        source: Any = {"Bucket": self.bucket, "Key": source_key}
        headers = self._headers_of_new_object(key)
        try:
            with self._connection.requesting(f"copy {source_key} to {key} in", source_key) as request:
                request.boto.copy_object(Bucket=self.bucket, Key=key, CopySource=source, **headers)
                root, answer = request.document()
        except StoreRejected as error:
            if error.code in UNSUPPORTED_CODES:
                self.features.note_refusal(Feature.COPY, error.cause)
                raise CopyUnsupported(error.action, error.cause, code=error.code) from None
            raise
        is_composite = documents.text(root, "ChecksumType").upper() == "COMPOSITE"
        checksum = None if is_composite else documents.crc32c_of(documents.text(root, "ChecksumCRC32C"))
        return PutReceipt(documents.etag(documents.text(root, "ETag")), checksum, _began_at(answer))

    def get_object(self, key: str, maximum: int, check_beginning: CheckBeginning | None = None) -> Content:
        """The whole object, of the length that was announced.

        Raises ObjectTooLarge, without having read more, when it has, or turns out to have, more than `maximum` bytes.
        What `check_beginning` raises is not translated.
        Raises ObjectMissing, and BodyDamaged where the body does not fit the CRC32C that comes with it, or, without
        one, its ETag, if this store was seen to give MD5s for ETags. That an object of somebody else has another kind
        of ETag there is possible, and so is damage that the store itself has taken in.
        """
        return self._get({"Bucket": self.bucket, "Key": key}, BodyLimit(maximum, check_beginning))

    def get_unsummed(self, key: str, maximum: int, check_beginning: CheckBeginning | None = None) -> Content:
        """As `get_object`, but not compared with an ETag: who checks the content himself needs no MD5 beside that."""
        parameters = {"Bucket": self.bucket, "Key": key}
        return self._get(parameters, BodyLimit(maximum, check_beginning), is_checked_anyway=True)

    def get_version(
        self, key: str, version_id: str, maximum: int, check_beginning: CheckBeginning | None = None
    ) -> Content:
        """As `get_object`, of one version. Raises ObjectMissing also where that is the mark of a deletion."""
        parameters = {"Bucket": self.bucket, "Key": key, "VersionId": version_id}
        return self._get(parameters, BodyLimit(maximum, check_beginning))

    def _get(self, parameters: Mapping[str, str], limit: BodyLimit, *, is_checked_anyway: bool = False) -> Content:
        answer = self._read(parameters, limit)
        checksum = documents.crc32c(answer.headers)
        if checksum is None and is_checked_anyway:
            return answer.content
        if not self._fits(answer.content, etag_of(answer), checksum):
            raise BodyDamaged(
                f"read {parameters['Key']} from {self.place}",
                "what arrived does not fit its checksum",
                answer.content,
                is_certain=checksum is not None,
            )
        return answer.content

    def _read(self, parameters: Mapping[str, str], limit: BodyLimit) -> Answer:
        key = parameters["Key"]

        def get(checksum: Mapping[str, Any]) -> Answer:
            named: Any = {**parameters, **checksum}
            with self._connection.requesting(f"read {key} from", key, limit=limit) as request:
                request.objects.get_object(**named)
                return request.answer()

        return self._with_checksum("read", get, {"ChecksumMode": "ENABLED"})

    def _fits(self, body: Content, etag: str, checksum: int | None) -> bool:
        if checksum is not None:
            return checksum == calculate_crc32c(body)
        is_md5 = calculate_md5(body).hex() == etag
        if is_md5:
            # Chance would not make it one.
            self._gives_md5_etags = True
        return is_md5 or not (self._gives_md5_etags and MD5_ETAG.fullmatch(etag))

    def head_object(self, key: str) -> StoredObject | None:
        """What the store tells of an object, or None when there is none.

        The answer to a HEAD has no body: whether it was S3 that has not found it is asked by a listing, which also
        tells a missing bucket from a missing object, and a wrong key from a missing permission.
        """
        try:
            return self.look(key)
        except StoreError as error:
            if isinstance(error, StoreUnavailable) and not error.reason.concerns_one_request:
                raise
            failure = error
        try:
            is_listed = self.shows(key)
        except StoreUnavailable as error:
            # The same refusal with words, or a question that could not be put: that explains nothing.
            if not isinstance(failure, ObjectMissing) and error.reason in _EXPLAIN_NOTHING:
                raise failure from None
            raise
        if not isinstance(failure, ObjectMissing):
            raise failure
        # An old view of it perhaps, or the word of somebody who is no S3: the object itself decides.
        return self._described_by_reading(key) if is_listed and not failure.is_certain else None

    def _described_by_reading(self, key: str) -> StoredObject | None:
        try:
            answer = self._read({"Bucket": self.bucket, "Key": key}, _OF_UNKNOWN_SIZE)
        except ObjectMissing:
            return None
        return described(key, len(answer.content), answer)

    def look(self, key: str) -> StoredObject:
        """What a HEAD tells of an object. Raises ObjectMissing, on the word of whoever answers."""
        return self._look({"Bucket": self.bucket, "Key": key})

    def look_at_version(self, key: str, version_id: str) -> StoredObject:
        """What a HEAD tells of a version that a listing shows."""
        return self._look({"Bucket": self.bucket, "Key": key, "VersionId": version_id})

    def _look(self, parameters: Mapping[str, str]) -> StoredObject:
        answer = self._head(parameters)
        size = announced_size(answer)
        if size is None:
            # A gateway that compresses, or one that leaves out what would be 0.
            size = len(self._read(parameters, _OF_UNKNOWN_SIZE).content)
        return described(parameters["Key"], size, answer)

    def _head(self, parameters: Mapping[str, str]) -> Answer:
        def head(checksum: Mapping[str, Any]) -> Answer:
            named: Any = {**parameters, **checksum}
            with self._connection.requesting(f"look at {parameters['Key']} in", parameters["Key"]) as request:
                request.objects.head_object(**named)
                return request.answer()

        return self._with_checksum("read", head, {"ChecksumMode": "ENABLED"})

    # -- deletion ------------------------------------------------------------------------------------------

    def delete_objects(self, keys: Sequence[str]) -> Mapping[str, StoreError]:
        """Deletes at most `keys_per_delete` objects and returns those that failed.

        An object that is not there counts as deleted; one of which the answer says nothing is looked for. A store that
        does not delete several objects in one request is asked to delete one after the other.
        """
        if not self.features.refuses(Feature.MULTI_DELETE):
            try:
                return self._delete_together(keys)
            except StoreRejected as error:
                if error.code not in UNSUPPORTED_CODES:
                    raise
                self.features.note_refusal(Feature.MULTI_DELETE, error.cause)
        return self._delete_one_by_one(keys)

    def _deleting(self, key: str) -> str:
        return f"delete {key} from {self.place}"

    def _delete_together(self, keys: Sequence[str]) -> Mapping[str, StoreError]:
        action = f"delete {keys[0]} from" if len(keys) == 1 else f"delete {len(keys)} objects from"
        with self._connection.requesting(action, writes=True) as request:
            request.boto.delete_objects(
                Bucket=self.bucket, Delete={"Objects": [{"Key": key} for key in keys], "Quiet": False}
            )
            root, answer = request.document()
        found = listings.deletions(root)
        failures: dict[str, StoreError] = {}
        for key, refusal in found.refused.items():
            if refusal.code not in MISSING_CODES and key in keys:
                failures[key] = self._refused(key, Refusal(refusal.code, request.quoted(refusal.message)), answer)
        words = next(iter(found.of_unknown_keys), None)
        for key in self._not_known_to_be_gone([key for key in keys if key not in found.gone | found.refused.keys()]):
            failures[key] = (
                StoreUnavailable(self._deleting(key), "the store says nothing about it", StoreReason.SERVER_ERROR)
                if words is None
                else self._refused(key, Refusal(words.code, request.quoted(words.message)), answer)
            )
        if keys and all(_is_denied(failures.get(key)) for key in keys):
            # A store that looks at the permission key by key denies them all so, where others deny the request.
            self._connection.forget_credentials()
        return failures

    def _not_known_to_be_gone(self, keys: Sequence[str]) -> Sequence[str]:
        """Those of the keys that are there; and all from the first on that cannot be looked for.

        What was said of the others is to be told all the same.
        """
        there: list[str] = []
        for at, key in enumerate(keys):
            try:
                is_there = self.head_object(key) is not None
            except StoreError as error:
                log.info("It is not known whether an object was deleted. %s", error)
                return [*there, *keys[at:]]
            if is_there:
                there.append(key)
        return there

    def _refused(self, key: str, refusal: Refusal, answer: Answer) -> StoreError:
        return translated(Asked(self._deleting(key), key), refusal, answer)

    def _delete_one_by_one(self, keys: Sequence[str]) -> dict[str, StoreError]:
        failures: dict[str, StoreError] = {}
        for key in keys:
            try:
                with self._connection.requesting(f"delete {key} from", key) as request:
                    request.boto.delete_object(Bucket=self.bucket, Key=key)
                    request.answer()
            except ObjectMissing:
                continue
            except StoreError as error:
                failures[key] = error
        return failures


def encode_crc32c(checksum: int) -> str:
    """The value of the header x-amz-checksum-crc32c: four bytes, the highest first, in base64."""
    return base64.b64encode(checksum.to_bytes(4, "big")).decode("ascii")


def _began_at(answer: Answer) -> float | None:
    """When a request began by the store's clock."""
    answered_at = documents.http_moment(answer.headers.get("date", ""))
    return None if answered_at is None else answered_at - answer.elapsed


def _is_denied(error: StoreError | None) -> bool:
    return isinstance(error, StoreUnavailable) and error.reason is StoreReason.ACCESS_DENIED
