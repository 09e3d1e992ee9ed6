"""One bucket through boto3: synchronous, for several threads at once.

Every exception of boto3 is translated here, and only here.
"""

from __future__ import annotations

import base64
import email.utils
import hashlib
import logging
import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import boto3.session
import botocore.config
import botocore.exceptions
import botocore.parsers
import urllib3.exceptions
from crc32c import crc32c as calculate_crc32c

import mirrorfs
from mirrorfs.objectstore.capabilities import LockMode, ObjectLockRule
from mirrorfs.objectstore.errors import (
    BodyDamaged,
    ChecksumRefused,
    CopyUnsupported,
    ObjectLocked,
    ObjectMissing,
    ObjectTooLarge,
    StoreError,
    StoreReason,
    StoreRejected,
    StoreUnavailable,
)
from mirrorfs.objectstore.url import StoreOptions

if TYPE_CHECKING:
    from botocore.awsrequest import AWSPreparedRequest
    from botocore.response import StreamingBody
    from mypy_boto3_s3 import S3Client as BotoClient
    from mypy_boto3_s3.type_defs import (
        GetObjectRequestTypeDef,
        ListObjectVersionsRequestTypeDef,
        PutObjectRequestTypeDef,
    )

MAX_KEYS_PER_DELETE = 1000
"""https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html"""

MD5_ETAG = re.compile("[0-9a-f]{32}")
"""What an ETag looks like that may be an MD5; that of an object which was put in parts does not."""

CheckBeginning = Callable[[bytes, int], None]
"""Given the first bytes of an object (4,096 where there are so many) and its length, before the rest is read; raises
what tells that the rest is not worth reading.
"""

_BEGINNING_SIZE = 4096
_PIECE_SIZE = 8 * 1024 * 1024
_CONNECT_TIMEOUT = 10.0
_READ_TIMEOUT = 60.0
_LARGEST_CLOCK_DIFFERENCE = 300.0
"""In seconds. Stores refuse from 15 minutes on; an error below that may still come from a clock that is being set."""

# https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html, and what other stores answer.
_REASONS = {
    **dict.fromkeys(
        (
            "InvalidAccessKeyId",
            "SignatureDoesNotMatch",
            "InvalidToken",
            "InvalidSecurity",
            "ExpiredToken",
            "TokenRefreshRequired",
            "UnrecognizedClientException",
        ),
        StoreReason.WRONG_KEY,
    ),
    **dict.fromkeys(("RequestTimeTooSkewed", "RequestExpired"), StoreReason.CLOCK_SKEW),
    **dict.fromkeys(
        ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301"),
        StoreReason.WRONG_REGION,
    ),
    **dict.fromkeys(
        ("QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "ServiceQuotaExceeded", "507"),
        StoreReason.FULL,
    ),
    **dict.fromkeys(
        ("SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests", "429"),
        StoreReason.THROTTLED,
    ),
    **dict.fromkeys(
        ("InternalError", "ServiceUnavailable", "RequestTimeout", "OperationAborted", "408"),
        StoreReason.SERVER_ERROR,
    ),
    "NoSuchBucket": StoreReason.BUCKET_MISSING,
    "AccessDenied": StoreReason.ACCESS_DENIED,
}
# Refused with 403 too, but not a matter of permission.
_REJECTIONS_WITH_STATUS_403 = frozenset({"InvalidObjectState", "MethodNotAllowed"})
_CHECKSUM_CODES = frozenset({"BadDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch"})
_MISSING_CODES = frozenset({"NoSuchKey", "NoSuchVersion", "404", "NotFound"})
_UNSUPPORTED_CODES = frozenset(
    {"NotImplemented", "501", "MethodNotAllowed", "405", "XNotImplemented", "UnsupportedOperation", "NotSupported"}
)
# AWS says the first of an object that has no retention, Ceph and SeaweedFS the second; all three say the third in a
# bucket without Object Lock.
_UNRETAINED_CODES = frozenset(
    {"NoSuchObjectLockConfiguration", "ObjectLockConfigurationNotFoundError", "InvalidRequest"}
)
_KEEPS_NO_VERSIONS = "It keeps only the latest version of an object, so nothing of the past can be found."
_LOCKED_CODES = frozenset({"ObjectLocked", "FileImmutable"})
# What AWS, Ceph and Versity add to AccessDenied when it is a lock that denies. With spaces: the names of permissions,
# which stand there when one is missing, have none. SeaweedFS adds nothing.
_LOCK_WORDS = re.compile(r"object lock|\bWORM\b|legal hold|retention (period|mode)", re.IGNORECASE)
# The store's own words about these may repeat what was sent to prove who we are.
_REASONS_OF_A_WRONG_CLOCK = frozenset({StoreReason.WRONG_KEY, StoreReason.ACCESS_DENIED, StoreReason.CLOCK_SKEW})
_REASONS_WITHOUT_QUOTE = frozenset({StoreReason.WRONG_KEY, StoreReason.ACCESS_DENIED, StoreReason.CLOCK_SKEW})


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object in the bucket: size in bytes, ETag without quotes, CRC32C of all bytes where the store tells.

    `modified_at` is when the store says that it was put, in Unix time; only a HEAD asks for that.
    """

    key: str
    size: int
    etag: str
    crc32c: int | None
    modified_at: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """One of the versions of an object, or the mark that its deletion has left (size 0 and no ETag).

    `modified_at` is in Unix time, with many stores in whole seconds: versions of one key may share it, and then only
    `is_latest` tells which came last. A Ceph moves it when it changes the retention of a version (seen with 16.2).
    `version_id` is "null" for what was put while the bucket was not versioned.
    """

    key: str
    version_id: str
    size: int
    etag: str
    modified_at: float
    is_latest: bool
    is_delete_marker: bool


@dataclass(frozen=True, slots=True)
class VersionMarker:
    """Where a listing of versions goes on; without a version, behind all those of the key."""

    key: str
    version_id: str | None


@dataclass(frozen=True, slots=True)
class VersionPage:
    """A part of a listing of versions, in no order that could be relied upon, and where it goes on (None: it ends)."""

    versions: tuple[StoredVersion, ...]
    next_marker: VersionMarker | None


@dataclass(frozen=True, slots=True)
class Retention:
    """Until when, in Unix time, and how strictly a store keeps a version of an object."""

    mode: LockMode
    until: float


@dataclass(frozen=True, slots=True)
class PutReceipt:
    """What the store answered to a PUT, or to a copy.

    `began_at` is when the PUT began by the store's own clock, in Unix time and up to 1 s early; None where the answer
    has no date.
    """

    etag: str
    crc32c: int | None
    began_at: float | None = None


@dataclass(frozen=True, slots=True)
class ListPage:
    """A part of a listing, in no order that could be relied upon, and the token of the next part (None at the end)."""

    objects: tuple[StoredObject, ...]
    next_token: str | None


class S3Client:
    """The requests that mirrorfs makes, each tried once. Keys are full keys in the bucket.

    Every method raises StoreError and nothing else: StoreUnavailable, StoreRejected, or what its own text says. The
    boto3 client is made at the first request, and made anew when the store did not accept the credentials, so that
    repaired ones are found without a restart.
    """

    def __init__(self, bucket: str, options: StoreOptions, *, parallelism: int = 8) -> None:
        """`parallelism` is the number of threads that each get a connection of their own."""
        self.bucket = bucket
        self._options = options
        self._parallelism = parallelism
        self._lock = threading.Lock()
        self._gives_md5_etags = False
        self._boto: BotoClient | None = None
        # botocore writes signed headers and session tokens into its debug log, and small talk into the other.
        for name in ("boto3", "botocore", "urllib3", "s3transfer"):
            logging.getLogger(name).setLevel(logging.WARNING)

    @property
    def endpoint(self) -> str:
        """The endpoint as far as it is known, for messages."""
        if self._boto is not None:
            return self._boto.meta.endpoint_url
        return self._options.endpoint_url or "the default endpoint"

    @property
    def place(self) -> str:
        """Bucket and endpoint, for messages."""
        return f"bucket {self.bucket} at {self.endpoint}"

    def put_object(self, key: str, body: bytes, *, crc32c: int | None, md5: bytes | None) -> PutReceipt:
        """Stores an object in one request, with checksums of the body for the store to compare.

        Where they do not fit, a store that honours them refuses: StoreRejected, mostly as ChecksumRefused.
        """
        request: PutObjectRequestTypeDef = {"Bucket": self.bucket, "Key": key, "Body": body}
        if crc32c is not None:
            request["ChecksumCRC32C"] = encode_crc32c(crc32c)
        if md5 is not None:
            request["ContentMD5"] = _base64(md5)
        with self._requesting(f"store {key} in", key) as boto:
            started = time.monotonic()
            answer = boto.put_object(**request)
            elapsed = time.monotonic() - started
            self._notice_md5(body, _etag(answer))
            return PutReceipt(_etag(answer), _crc32c(answer), _began_at(answer, elapsed))

    def copy_object(self, source_key: str, key: str) -> PutReceipt:
        """Has the store copy an object of at most 5 GB within the bucket, with its metadata.

        Raises ObjectMissing when there is no source, CopyUnsupported when the store says that it cannot.
        """
        try:
            with self._requesting(f"copy {source_key} to {key} in", source_key) as boto:
                started = time.monotonic()
                answer = boto.copy_object(
                    Bucket=self.bucket, Key=key, CopySource={"Bucket": self.bucket, "Key": source_key}
                )
                elapsed = time.monotonic() - started
        except StoreRejected as error:
            if error.code in _UNSUPPORTED_CODES:
                raise CopyUnsupported(error.action, error.cause, code=error.code) from None
            raise
        result = answer.get("CopyObjectResult", {})
        return PutReceipt(_etag(result), _crc32c(result), _began_at(answer, elapsed))

    def get_object(self, key: str, maximum: int, check_beginning: CheckBeginning | None = None) -> bytes:
        """The whole object, of the length that was announced.

        Raises ObjectTooLarge, without having read more, when it has, or turns out to have, more than `maximum` bytes.
        What `check_beginning` raises is not translated.
        Raises ObjectMissing, and BodyDamaged where the body does not fit the CRC32C that comes with it, or its ETag,
        if this store was seen to give MD5s for ETags. That an object of somebody else has another kind of ETag there
        is possible, and so is damage that the store itself has taken in.
        """
        return self._get({"Bucket": self.bucket, "Key": key}, maximum, check_beginning)

    def get_version(
        self, key: str, version_id: str, maximum: int, check_beginning: CheckBeginning | None = None
    ) -> bytes:
        """As `get_object`, of one version. Raises ObjectMissing also where that is the mark of a deletion."""
        return self._get({"Bucket": self.bucket, "Key": key, "VersionId": version_id}, maximum, check_beginning)

    def _get(self, request: GetObjectRequestTypeDef, maximum: int, check_beginning: CheckBeginning | None) -> bytes:
        key = request["Key"]
        with self._requesting(f"read {key} from", key) as boto:
            answer = boto.get_object(**request)
            announced = answer.get("ContentLength")
            with answer["Body"] as stream:
                # Closed before its end, the connection is not used again.
                body = _read_body(stream, announced, maximum, check_beginning)
            if body is None:
                found = "more" if announced is None else f"{announced} bytes"
                raise ObjectTooLarge(
                    f"read {key} from {self.place}",
                    f"at most {maximum} bytes belong there, and it has {found}",
                    "mirrorfs puts no such object there: find out who did.",
                )
            announced = len(body) if announced is None else announced
            if len(body) != announced:
                raise botocore.exceptions.IncompleteReadError(actual_bytes=len(body), expected_bytes=announced)
        if not self._fits(body, _etag(answer), _crc32c(answer)):
            raise BodyDamaged(f"read {key} from {self.place}", "what arrived does not fit its checksum", body)
        return body

    def _fits(self, body: bytes, etag: str, checksum: int | None) -> bool:
        if checksum is not None and checksum != calculate_crc32c(body):
            return False
        return self._notice_md5(body, etag) or not (self._gives_md5_etags and MD5_ETAG.fullmatch(etag))

    def _notice_md5(self, body: bytes, etag: str) -> bool:
        """Whether the ETag is the MD5 of the body; then this store gives such ones, since chance would not."""
        if hashlib.md5(body, usedforsecurity=False).hexdigest() != etag:
            return False
        self._gives_md5_etags = True
        return True

    def head_object(self, key: str) -> StoredObject | None:
        """What the store tells of an object, or None when there is none."""
        try:
            with self._requesting(f"look at {key} in", key) as boto:
                answer = boto.head_object(Bucket=self.bucket, Key=key, ChecksumMode="ENABLED")
                modified = answer.get("LastModified")
                modified_at = None if modified is None else modified.timestamp()
                return StoredObject(key, answer["ContentLength"], _etag(answer), _crc32c(answer), modified_at)
        except StoreError as error:
            if isinstance(error, StoreUnavailable) and not error.reason.concerns_one_request:
                raise
            # The answer to a HEAD has no body; that to a listing tells a missing bucket from a missing object,
            # and a wrong key from a missing permission.
            self.check_bucket(key)
            if isinstance(error, ObjectMissing):
                return None
            raise

    def check_bucket(self, prefix: str = "") -> None:
        """Raises StoreUnavailable unless the bucket exists and may be listed below the prefix."""
        with self._requesting("look into", None) as boto:
            boto.list_objects_v2(Bucket=self.bucket, Prefix=prefix, MaxKeys=1)

    def list_page(self, prefix: str, token: str | None) -> ListPage:
        """A part of the flat listing of all keys that begin with the prefix; the token is of the part before."""
        with self._requesting(f"list {prefix} in", None) as boto:
            if token is None:
                answer = boto.list_objects_v2(Bucket=self.bucket, Prefix=prefix)
            else:
                answer = boto.list_objects_v2(Bucket=self.bucket, Prefix=prefix, ContinuationToken=token)
            objects = tuple(
                StoredObject(found["Key"], found["Size"], _etag(found), None) for found in answer.get("Contents", [])
            )
            next_token = answer.get("NextContinuationToken") if answer.get("IsTruncated") else None
        if answer.get("IsTruncated") and next_token in (None, token):
            raise StoreRejected(f"list {prefix} in {self.place}", "the store breaks the listing off in the middle")
        return ListPage(objects, next_token)

    def list_versions_page(self, prefix: str, marker: VersionMarker | None) -> VersionPage:
        """A part of the listing of all versions of the keys that begin with the prefix, from the marker on.

        https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectVersions.html
        """
        request: ListObjectVersionsRequestTypeDef = {"Bucket": self.bucket, "Prefix": prefix}
        if marker is not None:
            request["KeyMarker"] = marker.key
            if marker.version_id is not None:
                request["VersionIdMarker"] = marker.version_id
        try:
            with self._requesting(f"list the versions of {prefix} in", None) as boto:
                answer = boto.list_object_versions(**request)
        except StoreRejected as error:
            if error.code in _UNSUPPORTED_CODES:
                raise StoreRejected(error.action, error.cause, _KEEPS_NO_VERSIONS, error.code) from None
            raise
        versions = [_version(found, is_delete_marker=False) for found in answer.get("Versions", [])]
        versions += [_version(found, is_delete_marker=True) for found in answer.get("DeleteMarkers", [])]
        if not answer.get("IsTruncated"):
            return VersionPage(tuple(versions), None)
        next_marker = VersionMarker(answer.get("NextKeyMarker", ""), answer.get("NextVersionIdMarker") or None)
        if next_marker in (VersionMarker("", None), marker):
            raise StoreRejected(
                f"list the versions of {prefix} in {self.place}", "the store breaks the listing off in the middle"
            )
        return VersionPage(tuple(versions), next_marker)

    def is_versioned(self) -> bool:
        """Whether the bucket keeps the earlier versions of its objects."""
        with self._requesting("ask for the versioning of", None) as boto:
            return boto.get_bucket_versioning(Bucket=self.bucket).get("Status") == "Enabled"

    def object_lock_rule(self) -> ObjectLockRule | None:
        """What Object Lock does in the bucket, None where it is not enabled; a refusal mostly means that, too."""
        with self._requesting("ask for the Object Lock of", None) as boto:
            answer = boto.get_object_lock_configuration(Bucket=self.bucket)
        found = answer.get("ObjectLockConfiguration", {})
        if found.get("ObjectLockEnabled") != "Enabled":
            return None
        default = found.get("Rule", {}).get("DefaultRetention", {})
        days = default.get("Days", 0) + 365 * default.get("Years", 0)
        return ObjectLockRule(default.get("Mode"), days * 86400.0 if days else None)

    def get_retention(self, key: str) -> Retention | None:
        """That of the latest version of an object, which may be over; None where it has none.

        Raises ObjectMissing.
        """
        try:
            with self._requesting(f"ask for the retention of {key} in", key) as boto:
                found = boto.get_object_retention(Bucket=self.bucket, Key=key).get("Retention", {})
        except StoreRejected as error:
            if error.code in _UNRETAINED_CODES:
                return None
            raise
        mode, until = found.get("Mode"), found.get("RetainUntilDate")
        return None if mode is None or until is None else Retention(mode, until.timestamp())

    def put_retention(self, key: str, retention: Retention) -> None:
        """Has the store keep the latest version of an object until then, or up to a second longer.

        A store refuses what would end an earlier retention sooner, mostly as AccessDenied. Raises ObjectMissing,
        ObjectLocked, and StoreRejected where the bucket has no Object Lock.
        """
        until = datetime.fromtimestamp(math.ceil(retention.until), UTC)
        with self._requesting(f"retain {key} in", key) as boto:
            boto.put_object_retention(
                Bucket=self.bucket, Key=key, Retention={"Mode": retention.mode, "RetainUntilDate": until}
            )

    def clock_difference(self, prefix: str = "") -> float | None:
        """How many seconds the store's clock is ahead of this machine's; None where its answer has no date.

        The date is in whole seconds and taken for that of the middle of the request, so this is right to half of the
        request's duration and a second.
        """
        with self._requesting("ask for the time of", None) as boto:
            at, started = time.time(), time.monotonic()
            answer = boto.list_objects_v2(Bucket=self.bucket, Prefix=prefix, MaxKeys=1)
            elapsed = time.monotonic() - started
        date = _parsed_date(answer["ResponseMetadata"]["HTTPHeaders"].get("date", ""))
        return None if date is None else date - (at + elapsed / 2)

    def delete_objects(self, keys: Sequence[str]) -> Mapping[str, StoreError]:
        """Deletes at most MAX_KEYS_PER_DELETE objects and returns those that failed.

        An object that is not there counts as deleted; one of which the answer says nothing is looked for.
        """
        action = f"delete {keys[0]} from" if len(keys) == 1 else f"delete {len(keys)} objects from"
        with self._requesting(action, None) as boto:
            answer = boto.delete_objects(
                Bucket=self.bucket, Delete={"Objects": [{"Key": key} for key in keys], "Quiet": False}
            )
        failures: dict[str, StoreError] = {}
        for error in answer.get("Errors", []):
            key, code = error["Key"], error.get("Code", "")
            if code not in _MISSING_CODES:
                failures[key] = self._translate_code(
                    f"delete {key} from {self.place}", key, code, error.get("Message"), 200, {}
                )
        answered = {found["Key"] for found in answer.get("Deleted", [])} | {
            error["Key"] for error in answer.get("Errors", [])
        }
        for key in keys:
            if key not in answered and self.head_object(key) is not None:
                failures[key] = StoreUnavailable(
                    f"delete {key} from {self.place}", "the store says nothing about it", StoreReason.SERVER_ERROR
                )
        if keys and all(_is_denied(failures.get(key)) for key in keys):
            # A store that looks at the permission key by key denies them all so, where others deny the request.
            self._forget(boto)
        return failures

    @contextmanager
    def _requesting(self, action: str, key: str | None) -> Iterator[BotoClient]:
        """Lends the boto3 client for one request; `action` ends with a preposition that the bucket follows."""
        boto: BotoClient | None = None
        try:
            boto = self._client()
            yield boto
        except (
            botocore.exceptions.ClientError,
            botocore.exceptions.BotoCoreError,
            urllib3.exceptions.HTTPError,
            OSError,
        ) as error:
            translated = self._translate(f"{action} {self.place}", key, error)
            if isinstance(translated, StoreUnavailable) and translated.reason.concerns_credentials:
                self._forget(boto)
            # What boto3 says may hold URLs and headers; the sentence has all that can be acted upon.
            raise translated from None

    def _client(self) -> BotoClient:
        with self._lock:
            if self._boto is None:
                self._boto = _make_client(self._options, self._parallelism)
            return self._boto

    def _forget(self, boto: BotoClient | None) -> None:
        with self._lock:
            if self._boto is boto:
                self._boto = None

    def _translate(self, action: str, key: str | None, error: Exception) -> StoreError:
        if isinstance(error, botocore.exceptions.ClientError):
            described = error.response.get("Error", {})
            metadata = error.response.get("ResponseMetadata", {})
            status = metadata.get("HTTPStatusCode", 0)
            return self._translate_code(
                action,
                key,
                described.get("Code") or str(status),
                described.get("Message"),
                status,
                metadata.get("HTTPHeaders", {}),
            )
        if isinstance(error, _CREDENTIAL_ERRORS):
            return StoreUnavailable(action, _first_line(str(error)), StoreReason.NO_CREDENTIALS)
        if isinstance(error, botocore.exceptions.SSLError):
            return StoreUnavailable(action, _innermost_cause(error), StoreReason.TLS_FAILED)
        if isinstance(error, botocore.parsers.ResponseParserError):
            return StoreUnavailable(action, "the answer is not S3's", StoreReason.SERVER_ERROR)
        if isinstance(error, _NETWORK_ERRORS):
            return StoreUnavailable(action, _innermost_cause(error), StoreReason.UNREACHABLE)
        return StoreRejected(action, _first_line(str(error)))

    def _translate_code(
        self, action: str, key: str | None, code: str, message: str | None, status: int, headers: Mapping[str, str]
    ) -> StoreError:
        if code in _MISSING_CODES:
            if key is not None:
                return ObjectMissing(action, "there is no such object")
            return StoreUnavailable(action, "there is no such bucket", StoreReason.BUCKET_MISSING)
        if key is not None and headers.get("x-amz-delete-marker") == "true":
            return ObjectMissing(action, "it was deleted")
        if code in _LOCKED_CODES or (code == "AccessDenied" and message and _LOCK_WORDS.search(message)):
            return ObjectLocked(action, f"the store answers {code}, since the object is locked", code=code)
        reason = _reason(code, status)
        cause = f"the store answers {code}"
        if message and reason not in _REASONS_WITHOUT_QUOTE:
            cause += f" ({_first_line(message)})"
        ahead = _seconds_ahead(headers) if reason in _REASONS_OF_A_WRONG_CLOCK else 0.0
        if abs(ahead) > _LARGEST_CLOCK_DIFFERENCE:
            # A store may find fault with a signature whose time is wrong without naming the time.
            reason = StoreReason.CLOCK_SKEW
            way = "ahead of" if ahead > 0 else "behind"
            cause += f", and this machine's clock is {abs(ahead) / 60:.0f} minutes {way} the store's"
        if reason is not None:
            return StoreUnavailable(action, cause, reason, _retry_after(headers))
        return (ChecksumRefused if code in _CHECKSUM_CODES else StoreRejected)(action, cause, code=code)


def _read_body(
    stream: StreamingBody, announced: int | None, maximum: int, check_beginning: CheckBeginning | None
) -> bytes | None:
    """The bytes that arrive; None where there are more than the maximum, of which nothing more is read then."""
    if announced is not None and announced > maximum:
        return None
    # One more than there may be, so that it shows.
    left = maximum + 1
    pieces = []
    if check_beginning is not None:
        pieces.append(stream.read(min(_BEGINNING_SIZE, left)))
        left -= len(pieces[0])
        if announced is not None:
            check_beginning(pieces[0], announced)
    while left and (piece := stream.read(min(_PIECE_SIZE, left))):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces) if left else None


def encode_crc32c(checksum: int) -> str:
    """The value of the header x-amz-checksum-crc32c: four bytes, the highest first, in base64."""
    return _base64(checksum.to_bytes(4, "big"))


def _make_client(options: StoreOptions, parallelism: int) -> BotoClient:
    config = botocore.config.Config(
        # boto3's own default, a checksum in a trailer of an aws-chunked body, is refused by older stores.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        # All repeating is done in one place, retry.py.
        retries={"mode": "standard", "total_max_attempts": 1},
        connect_timeout=_CONNECT_TIMEOUT,
        read_timeout=_READ_TIMEOUT,
        max_pool_connections=parallelism,
        user_agent_extra=f"mirrorfs/{mirrorfs.__version__}",
    )
    session = boto3.session.Session(profile_name=options.profile, region_name=options.region)
    try:
        client = session.client("s3", endpoint_url=options.endpoint_url, config=config)
    except ValueError as error:
        # An endpoint from the environment or the profile; one of our own options was checked before.
        raise StoreRejected("reach the store", _first_line(str(error)), "Check AWS_ENDPOINT_URL.") from None
    client.meta.events.register("before-call.s3.DeleteObjects", _add_content_md5)
    client.meta.events.register("before-call.s3.PutObjectRetention", _add_content_md5)
    client.meta.events.register("before-call.s3.GetObject", _ask_for_checksums)
    client.meta.events.register("before-send.s3.PutObject", _expect_nothing_for_an_empty_body)
    return client


def _add_content_md5(params: dict[str, Any], **_: object) -> None:
    # boto3 sends a CRC32 instead since 1.36, and has no argument for the MD5 that many stores insist on.
    params["headers"]["Content-MD5"] = _base64(hashlib.md5(params["body"], usedforsecurity=False).digest())


def _ask_for_checksums(params: dict[str, Any], **_: object) -> None:
    # Asked by its argument ChecksumMode, boto3 would compare some kinds itself, and keep back the body that differs.
    params["headers"]["x-amz-checksum-mode"] = "ENABLED"


def _expect_nothing_for_an_empty_body(request: AWSPreparedRequest, **_: object) -> None:
    # boto3 asks for "100 Continue" whatever the size. A store that has nothing to wait for answers 100 and 200 in one
    # go, which botocore (seen with 1.36) takes apart wrongly: the connection is out of step from then on.
    if request.headers.get("Content-Length") == "0" and "Expect" in request.headers:
        del request.headers["Expect"]


_CREDENTIAL_ERRORS = (
    botocore.exceptions.NoCredentialsError,
    botocore.exceptions.PartialCredentialsError,
    botocore.exceptions.CredentialRetrievalError,
    botocore.exceptions.ProfileNotFound,
    botocore.exceptions.ConfigNotFound,
    botocore.exceptions.ConfigParseError,
    botocore.exceptions.TokenRetrievalError,
    botocore.exceptions.SSOError,
    botocore.exceptions.RefreshWithMFAUnsupportedError,
)
_NETWORK_ERRORS = (
    botocore.exceptions.ConnectionError,
    botocore.exceptions.HTTPClientError,
    botocore.exceptions.IncompleteReadError,
    urllib3.exceptions.HTTPError,
    OSError,
)


def _reason(code: str, status: int) -> StoreReason | None:
    """Why the store is unavailable, or None when it is this request that it refused."""
    if code in _REASONS:
        return _REASONS[code]
    if status == 403:
        return None if code in _REJECTIONS_WITH_STATUS_403 else StoreReason.ACCESS_DENIED
    if status == 401:
        return StoreReason.WRONG_KEY
    if status == 429:
        return StoreReason.THROTTLED
    if status >= 500 and status != 501:
        return StoreReason.SERVER_ERROR
    return None


def _seconds_ahead(headers: Mapping[str, str]) -> float:
    """How far this machine's clock is ahead of that of the store, as its answer tells; 0 where it does not."""
    at = _parsed_date(headers.get("date", ""))
    return 0.0 if at is None else time.time() - at


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """In seconds; the header has them, or an HTTP date (RFC 9110, 10.2.3)."""
    text = headers.get("retry-after", "").strip()
    if text.isdecimal():
        return float(text[:9])
    at, now = _parsed_date(text), _parsed_date(headers.get("date", ""))
    return None if at is None else max(0.0, at - (time.time() if now is None else now))


def _parsed_date(text: str) -> float | None:
    """Unix time of an HTTP date, None if it is none."""
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None


def _began_at(answer: Mapping[str, Any], elapsed: float) -> float | None:
    """When a request began by the store's clock that took so many seconds."""
    answered_at = _parsed_date(answer["ResponseMetadata"]["HTTPHeaders"].get("date", ""))
    return None if answered_at is None else answered_at - elapsed


def _is_denied(error: StoreError | None) -> bool:
    return isinstance(error, StoreUnavailable) and error.reason is StoreReason.ACCESS_DENIED


def _version(found: Mapping[str, Any], *, is_delete_marker: bool) -> StoredVersion:
    return StoredVersion(
        found["Key"],
        found.get("VersionId", "null"),
        found.get("Size", 0),
        _etag(found),
        found["LastModified"].timestamp(),
        bool(found.get("IsLatest")),
        is_delete_marker,
    )


def _innermost_cause(error: BaseException) -> str:
    """In a few words what the operating system or the TLS library said, below all the wrapping."""
    seen: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in seen:
        seen.append(at)
        at = _wrapped(at)
    for candidate in reversed(seen):
        if isinstance(candidate, TimeoutError | botocore.exceptions.ConnectTimeoutError):
            return "no answer in time"
        if isinstance(candidate, OSError) and candidate.strerror:
            return candidate.strerror
        if isinstance(candidate, botocore.exceptions.ReadTimeoutError | urllib3.exceptions.TimeoutError):
            return "no answer in time"
    return "the connection broke off"


def _wrapped(error: BaseException) -> BaseException | None:
    inner = getattr(error, "kwargs", {}).get("error") or getattr(error, "reason", None)
    if isinstance(inner, BaseException):
        return inner
    return error.__cause__ or error.__context__


def _first_line(text: str) -> str:
    return " ".join(text.split())[:200]


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def _etag(answer: Mapping[str, Any]) -> str:
    return str(answer.get("ETag", "")).strip('"')


def _crc32c(answer: Mapping[str, Any]) -> int | None:
    """The CRC32C over all bytes; that over the parts of a multipart upload ("…-3") says nothing here."""
    text = answer.get("ChecksumCRC32C")
    if text is None or answer.get("ChecksumType") == "COMPOSITE" or "-" in text:
        return None
    return int.from_bytes(base64.b64decode(text), "big")
