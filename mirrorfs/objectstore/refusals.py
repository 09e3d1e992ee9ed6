"""What an answer that is no success means: wait and why, missing, or refused for this object."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from mirrorfs.objectstore.documents import ErrorDocument, error_document, http_moment, kind_of
from mirrorfs.objectstore.errors import (
    ChecksumRefused,
    ObjectLocked,
    ObjectMissing,
    StoreError,
    StoreReason,
    StoreRejected,
    StoreUnavailable,
)
from mirrorfs.objectstore.masking import quoted, request_id, shown_url
from mirrorfs.objectstore.transport import Answer

LARGEST_CLOCK_DIFFERENCE = 300.0
"""In seconds. Stores refuse from 15 minutes on; an error below that may still come from a clock that is being set."""

UNSUPPORTED_CODES = frozenset(
    {"NotImplemented", "501", "MethodNotAllowed", "405", "XNotImplemented", "UnsupportedOperation", "NotSupported"}
)
"""What stores say of a request that they do not know."""

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
    **dict.fromkeys(("AuthorizationHeaderMalformed", "IllegalLocationConstraintException"), StoreReason.WRONG_REGION),
    **dict.fromkeys(("PermanentRedirect", "TemporaryRedirect", "Redirect"), StoreReason.REDIRECTED),
    **dict.fromkeys(
        (
            "QuotaExceeded",
            "XMinioStorageFull",
            "XMinioAdminBucketQuotaExceeded",
            "InsufficientStorage",
            "InsufficientCapacity",
            "ServiceQuotaExceeded",
            "StorageCapExceeded",
            "storage_cap_exceeded",
            "cap_exceeded",
            "EntityTooMuch",
        ),
        StoreReason.FULL,
    ),
    **dict.fromkeys(
        (
            "AccountProblem",
            "AccountSuspended",
            "UserSuspended",
            "UserDisable",
            "AllAccessDisabled",
            "NotSignedUp",
            "AccountDisabled",
        ),
        StoreReason.ACCOUNT_SUSPENDED,
    ),
    **dict.fromkeys(("SecondLevelDomainForbidden", "PathStyleNotAllowed"), StoreReason.ADDRESSING),
    **dict.fromkeys(
        ("SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests"),
        StoreReason.THROTTLED,
    ),
    **dict.fromkeys(
        ("InternalError", "ServiceUnavailable", "RequestTimeout", "OperationAborted"), StoreReason.SERVER_ERROR
    ),
    "NoSuchBucket": StoreReason.BUCKET_MISSING,
    "AccessDenied": StoreReason.ACCESS_DENIED,
}
# What a store says in words only, whatever the code beside it, in an answer of a status from 400 on.
_WORDS = (
    (StoreReason.ENCRYPTION, re.compile(r"\bkms\b|server-side[- ]encryption|encryption (header|is required)", re.I)),
    (
        StoreReason.FULL,
        re.compile(r"storage cap|\bcap exceeded|quota|not enough (space|storage)|disk.{0,9}full", re.I),
    ),
    (
        StoreReason.ACCOUNT_SUSPENDED,
        re.compile(r"(account|user|tenant)\b.{0,40}(suspended|disabled|overdue)", re.I),
    ),
    (StoreReason.ADDRESSING, re.compile(r"virtual[- ]host|path[- ]style", re.I)),
)
# Those that are also seen without a body. A 404 without one is mostly that of an ingress which knows no such host.
_STATUSES_OF_S3 = frozenset({400, 401, 403, 405, 409, 411, 412, 416, 429, 500, 501, 502, 503, 504, 507})
_STATUSES_WITH_WORDS = frozenset({400, 401, 402, 403, 409})
_REASONS_OF_STATUS = {
    401: StoreReason.WRONG_KEY,
    402: StoreReason.ACCOUNT_SUSPENDED,
    403: StoreReason.ACCESS_DENIED,
    407: StoreReason.PROXY_FAILED,
    408: StoreReason.SERVER_ERROR,
    421: StoreReason.NOT_S3,
    429: StoreReason.THROTTLED,
    507: StoreReason.FULL,
    511: StoreReason.NOT_S3,
}
# Refused with 403 too, but not a matter of permission.
_REJECTIONS_WITH_STATUS_403 = frozenset({"InvalidObjectState", "MethodNotAllowed"})
_CHECKSUM_CODES = frozenset({"BadDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch"})
MISSING_CODES = frozenset({"NoSuchKey", "NoSuchVersion", "404", "NotFound"})
"""What stores say of an object that is not there."""
_LOCKED_CODES = frozenset({"ObjectLocked", "FileImmutable"})
# What AWS, Ceph and Versity add to AccessDenied when it is a lock that denies. With spaces: the names of permissions,
# which stand there when one is missing, have none. SeaweedFS adds nothing.
_LOCK_WORDS = re.compile(r"object lock|\bWORM\b|legal hold|retention (period|mode)", re.IGNORECASE)
_REASONS_OF_A_WRONG_CLOCK = frozenset({StoreReason.WRONG_KEY, StoreReason.ACCESS_DENIED, StoreReason.CLOCK_SKEW})
_STATUSES_AFTER_WHICH_IT_MAY_BE_DONE = frozenset({500, 502, 504})
_TOO_LARGE = (
    "The store, or something that stands before it, takes no request of this size: raise its limit (in nginx "
    "client_max_body_size) to 20 MB and more."
)
_HINTS = {
    "InvalidObjectState": "The object is archived: have the store restore it first, and do not let its rules archive.",
    "413": _TOO_LARGE,
    "EntityTooLarge": _TOO_LARGE,
    "RequestEntityTooLarge": _TOO_LARGE,
    "MaxMessageLengthExceeded": _TOO_LARGE,
    "InvalidStorageClass": "Check --storage-class and --chunk-storage-class.",
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request was for: the sentence of it, and the key that it concerns, if it concerns one object.

    `writes` tells that it can never be answered with "there is no such object".
    """

    action: str
    key: str | None = None
    writes: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """What the store said about one object: its code or the status, and its words."""

    code: str
    message: str = ""


def refusal_of(asked: Asked, answer: Answer, secrets: Collection[str] = ()) -> StoreError:
    """The error that an answer without success stands for. No secret is in it, whatever the store repeats."""
    document = error_document(answer.body)
    said = quoted(document.message, secrets) if document is not None else ""
    identity = request_id(
        answer.headers.get("x-amz-request-id", "") or (document.request_id if document is not None else "")
    )
    trace = f" (request id {identity})" if identity else ""
    if 300 <= answer.status < 400:
        return _redirected(asked, answer, document, trace)
    is_s3 = document is not None or _may_be_without_body(answer)
    code = quoted(document.code)[:60] if document is not None and document.code else str(answer.status)
    if not is_s3:
        return _not_s3(asked, answer, trace)
    if code in MISSING_CODES:
        return _missing(asked, answer, code, trace)
    return translated(asked, Refusal(code, said), answer, trace)


def translated(asked: Asked, refusal: Refusal, answer: Answer, trace: str = "") -> StoreError:
    """The error for what a store said of an object, in an answer of its own or among many."""
    code, said = refusal.code, refusal.message
    if asked.key is not None and answer.headers.get("x-amz-delete-marker", "").lower() == "true":
        return ObjectMissing(asked.action, "it was deleted")
    if code in _LOCKED_CODES or (code == "AccessDenied" and _LOCK_WORDS.search(said)):
        return ObjectLocked(asked.action, f"the store answers {code}, since the object is locked{trace}", code=code)
    reason = _reason(code, said, answer.status)
    cause = f"the store answers {code}" + (f": {said.rstrip('.')}" if said else "") + trace
    ahead = _seconds_ahead(answer.headers) if reason in _REASONS_OF_A_WRONG_CLOCK else 0.0
    if abs(ahead) > LARGEST_CLOCK_DIFFERENCE:
        # A store may find fault with a signature whose time is wrong without naming the time.
        reason = StoreReason.CLOCK_SKEW
        way = "ahead of" if ahead > 0 else "behind"
        cause += f", and this machine's clock is {abs(ahead) / 60:.0f} minutes {way} the store's"
    if reason is not None:
        may_be_done = answer.status in _STATUSES_AFTER_WHICH_IT_MAY_BE_DONE
        return StoreUnavailable(asked.action, cause, reason, retry_after(answer.headers), may_be_done=may_be_done)
    return (ChecksumRefused if code in _CHECKSUM_CODES else StoreRejected)(
        asked.action, cause, _HINTS.get(code, ""), code
    )


def not_s3(asked: Asked, answer: Answer, found: str) -> StoreUnavailable:
    """The error for an answer that no S3 has given, or that cannot be believed."""
    return StoreUnavailable(asked.action, f"{found} came as the answer, which S3 does not send", StoreReason.NOT_S3)


def _redirected(asked: Asked, answer: Answer, document: ErrorDocument | None, trace: str) -> StoreUnavailable:
    region = answer.headers.get("x-amz-bucket-region", "") or (document.region if document is not None else "")
    target = answer.headers.get("location", "") or (document.endpoint if document is not None else "")
    cause = f"the store answers with a redirect ({answer.status})"
    if target:
        cause += f" to {_origin(target)}"
    if region:
        cause += f"; the bucket's region is {request_id(region)}"
        return StoreUnavailable(asked.action, cause + trace, StoreReason.WRONG_REGION)
    return StoreUnavailable(asked.action, cause + trace, StoreReason.REDIRECTED)


def _origin(target: str) -> str:
    """What of a redirect's target is to be given as the endpoint: without bucket and key."""
    shown = shown_url(target)
    scheme, separator, rest = shown.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}" if separator else shown


def _may_be_without_body(answer: Answer) -> bool:
    """Whether S3 itself may have sent this error: the answer to a HEAD has no body, and some refusals have none."""
    if answer.operation == "HeadObject":
        is_page = "html" in answer.headers.get("content-type", "").lower()
        return not is_page and (answer.status == 404 or answer.status in _STATUSES_OF_S3)
    return kind_of(answer.body) == "nothing" and answer.status in _STATUSES_OF_S3


def _not_s3(asked: Asked, answer: Answer, trace: str) -> StoreError:
    kind = kind_of(answer.body, answer.headers.get("content-type", ""))
    what = f"{answer.status} with {kind if kind != 'nothing' else 'an empty body'}"
    wait = retry_after(answer.headers)
    if answer.status == 413:
        return StoreRejected(asked.action, f"{what} came as the answer{trace}", _HINTS["413"], "413")
    if answer.status in (405, 411, 414, 417, 501):
        return StoreRejected(asked.action, f"{what} came as the answer{trace}", code=str(answer.status))
    reason = _REASONS_OF_STATUS.get(answer.status, StoreReason.NOT_S3)
    if answer.status in (401, 403):
        reason = StoreReason.NOT_S3
    if answer.status >= 500 and reason is StoreReason.NOT_S3 and answer.status != 511:
        reason = StoreReason.SERVER_ERROR
    may_be_done = answer.status in _STATUSES_AFTER_WHICH_IT_MAY_BE_DONE
    return StoreUnavailable(asked.action, f"{what} came as the answer{trace}", reason, wait, may_be_done=may_be_done)


def _missing(asked: Asked, answer: Answer, code: str, trace: str) -> StoreError:
    if asked.writes:
        return StoreUnavailable(
            asked.action, f"the store answers {code} to what writes{trace}", StoreReason.SERVER_ERROR
        )
    if asked.key is not None:
        is_certain = bool(answer.body) or any(name.startswith("x-amz-") for name in answer.headers)
        return ObjectMissing(asked.action, "there is no such object", is_certain=is_certain)
    if code in ("NoSuchKey", "NoSuchVersion"):
        return StoreUnavailable(asked.action, f"the store answers {code}{trace}", StoreReason.SERVER_ERROR)
    return StoreUnavailable(asked.action, f"there is no such bucket{trace}", StoreReason.BUCKET_MISSING)


def _reason(code: str, said: str, status: int) -> StoreReason | None:
    """Why the store is unavailable, or None when it is this request that it refused."""
    if code in _REASONS and _REASONS[code] is not StoreReason.ACCESS_DENIED:
        return _REASONS[code]
    if code.startswith("KMS."):
        return StoreReason.ENCRYPTION
    if status in _STATUSES_WITH_WORDS and said and code not in _REJECTIONS_WITH_STATUS_403:
        for reason, words in _WORDS:
            if words.search(said):
                return reason
    if code in _REASONS:
        return _REASONS[code]
    if status == 403 and code in _REJECTIONS_WITH_STATUS_403:
        return None
    if status >= 500 and status not in _REASONS_OF_STATUS and status != 501:
        return StoreReason.SERVER_ERROR
    return _REASONS_OF_STATUS.get(status)


def _seconds_ahead(headers: Mapping[str, str]) -> float:
    """How far this machine's clock is ahead of that of the store, as its answer tells; 0 where it does not."""
    at = http_moment(headers.get("date", ""))
    return 0.0 if at is None else time.time() - at


def retry_after(headers: Mapping[str, str]) -> float | None:
    """In seconds; the header has them, or an HTTP date (RFC 9110, 10.2.3)."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdecimal():
        return float(text[:9])
    at, now = http_moment(text), http_moment(headers.get("date", ""))
    return None if at is None else max(0.0, at - (time.time() if now is None else now))
