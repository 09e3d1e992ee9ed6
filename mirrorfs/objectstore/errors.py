"""What can go wrong with an object store, sorted by what the caller can do about it: wait, give up, or take note."""

from __future__ import annotations

from enum import Enum


class StoreReason(Enum):
    """Why a store cannot be used for now. The value is a stable word for status output."""

    UNREACHABLE = "unreachable"
    TLS_FAILED = "tls-failed"
    BUCKET_MISSING = "bucket-missing"
    ACCESS_DENIED = "access-denied"
    WRONG_KEY = "wrong-key"
    NO_CREDENTIALS = "no-credentials"
    CLOCK_SKEW = "clock-skew"
    WRONG_REGION = "wrong-region"
    FULL = "full"
    THROTTLED = "throttled"
    SERVER_ERROR = "server-error"

    @property
    def hint(self) -> str:
        """What an administrator should do next, as one sentence."""
        return _HINTS[self]

    @property
    def concerns_one_request(self) -> bool:
        """Whether this may well be a matter of a single request, while the store serves all others."""
        return self in (StoreReason.ACCESS_DENIED, StoreReason.THROTTLED, StoreReason.SERVER_ERROR)

    @property
    def concerns_credentials(self) -> bool:
        """Whether other credentials, read again from where they are kept, could help."""
        return self in (StoreReason.WRONG_KEY, StoreReason.NO_CREDENTIALS, StoreReason.ACCESS_DENIED)


_HINTS = {
    StoreReason.UNREACHABLE: "Check the endpoint URL, name resolution, the network, and whether the store runs.",
    StoreReason.TLS_FAILED: (
        "Check the endpoint URL and the store's certificate; a private certificate authority goes into AWS_CA_BUNDLE."
    ),
    StoreReason.BUCKET_MISSING: "Check the bucket's name and the endpoint, or create the bucket; mirrorfs never does.",
    StoreReason.ACCESS_DENIED: (
        "Check the key, and that its policy grants ListBucket on the bucket and GetObject, PutObject and DeleteObject "
        "below the prefix; with Object Lock also GetObjectRetention and PutObjectRetention, and for what was there in "
        "the past ListBucketVersions and GetObjectVersion."
    ),
    StoreReason.WRONG_KEY: (
        "Check the access key and its secret: unknown, expired, or not belonging together. "
        "A credentials file is read again at each try."
    ),
    StoreReason.NO_CREDENTIALS: (
        "Put keys into ~/.aws/credentials (see --profile) or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
    ),
    StoreReason.CLOCK_SKEW: "Set this machine's clock right (timedatectl), or the store's.",
    StoreReason.WRONG_REGION: "Give the bucket's region with --region.",
    StoreReason.FULL: "Free space in the store or raise the quota.",
    StoreReason.THROTTLED: "If it lasts, raise the store's limits, or upload less at a time.",
    StoreReason.SERVER_ERROR: "Look into the store's own log and state; a load balancer in between may answer too.",
}


class StoreError(Exception):
    """Base of all errors of this package.

    The text says what was being done, to what, why it failed, and what to do next. It never holds a secret, a
    signed URL or request headers. `action` and `cause` are two of its parts.
    """

    def __init__(self, action: str, cause: str, hint: str = "") -> None:
        super().__init__(f"Could not {action}: {cause.rstrip('.')}." + (f" {hint}" if hint else ""))
        self.action = action
        self.cause = cause


class StoreUnavailable(StoreError):
    """The store cannot be used for now; the same request may succeed later, possibly after an administrator's help.

    `retry_after` is how many seconds the store asked to be left alone, None when it did not.
    """

    def __init__(self, action: str, cause: str, reason: StoreReason, retry_after: float | None = None) -> None:
        super().__init__(action, cause, reason.hint)
        self.reason = reason
        self.retry_after = retry_after


class StoreRejected(StoreError):
    """The store refused this very request; to repeat it would not help.

    `code` is the store's own word for why (https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html), or the
    HTTP status in digits where it gave none; empty when it is not the store that refused.
    """

    def __init__(self, action: str, cause: str, hint: str = "", code: str = "") -> None:
        super().__init__(action, cause, hint)
        self.code = code


class ChecksumRefused(StoreRejected):
    """What arrived at the store does not fit the checksum that was sent with it."""


class CopyUnsupported(StoreRejected):
    """The store does not copy objects by itself."""


class ObjectLocked(StoreRejected):
    """The store keeps this object as it is until its retention is over, whoever asks."""


class ObjectMissing(StoreError):
    """There is no object of this key."""


class ObjectTooLarge(StoreRejected):
    """The object is longer than anything that belongs under its key; it was not read, or not to its end."""


class BodyDamaged(StoreError):
    """The body that arrived does not fit the checksum that the store told with it."""

    def __init__(self, action: str, cause: str, body: bytes) -> None:
        super().__init__(action, cause)
        self.body = body


class ConfirmationFailed(StoreError):
    """What the store holds is not what was sent to it, and sending it again did not help."""
