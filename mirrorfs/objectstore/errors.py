"""What can go wrong with an object store, sorted by what the caller can do about it: wait, give up, or take note."""

from __future__ import annotations

from enum import Enum

from mirrorfs.datastore.content import Content


class StoreReason(Enum):
    """Why a store cannot be used for now. The value is a stable word for status output."""

    UNREACHABLE = "unreachable"
    PROXY_FAILED = "proxy-failed"
    TLS_FAILED = "tls-failed"
    NOT_S3 = "not-s3"
    REDIRECTED = "redirected"
    BUCKET_MISSING = "bucket-missing"
    ACCESS_DENIED = "access-denied"
    WRONG_KEY = "wrong-key"
    NO_CREDENTIALS = "no-credentials"
    LOCAL_SETTING = "local-setting"
    CLOCK_SKEW = "clock-skew"
    WRONG_REGION = "wrong-region"
    ADDRESSING = "addressing"
    ACCOUNT_SUSPENDED = "account-suspended"
    ENCRYPTION = "encryption"
    FULL = "full"
    REFUSES_WRITES = "refuses-writes"
    THROTTLED = "throttled"
    SERVER_ERROR = "server-error"

    @property
    def hint(self) -> str:
        """What an administrator should do next, as one sentence."""
        return _HINTS[self]

    @property
    def concerns_one_request(self) -> bool:
        """Whether this may well be a matter of a single request, while the store serves all others."""
        return self in _OF_ONE_REQUEST

    @property
    def concerns_writes(self) -> bool:
        """Whether this may be a matter of all that is put, while the store serves what only reads or deletes."""
        return self in _OF_WRITES

    @property
    def concerns_credentials(self) -> bool:
        """Whether other credentials, read again from where they are kept, could help."""
        return self in (StoreReason.WRONG_KEY, StoreReason.NO_CREDENTIALS, StoreReason.ACCESS_DENIED)

    @property
    def concerns_local_settings(self) -> bool:
        """Whether what this machine has configured, read again, could help."""
        return self.concerns_credentials or self is StoreReason.LOCAL_SETTING

    @property
    def needs_an_administrator(self) -> bool:
        """Whether this hardly ends by itself: somebody has to change something, here or in the store."""
        return self not in _END_BY_THEMSELVES


_OF_ONE_REQUEST = frozenset(
    {StoreReason.ACCESS_DENIED, StoreReason.THROTTLED, StoreReason.SERVER_ERROR, StoreReason.NOT_S3}
)
_OF_WRITES = frozenset(
    {StoreReason.ACCESS_DENIED, StoreReason.ENCRYPTION, StoreReason.FULL, StoreReason.REFUSES_WRITES}
)
_END_BY_THEMSELVES = frozenset(
    {StoreReason.UNREACHABLE, StoreReason.THROTTLED, StoreReason.SERVER_ERROR, StoreReason.NOT_S3}
)
_HINTS = {
    StoreReason.UNREACHABLE: "Check the endpoint URL, name resolution, the network, and whether the store runs.",
    StoreReason.PROXY_FAILED: (
        "Check the proxy (--proxy, or HTTPS_PROXY and HTTP_PROXY in the environment, where a name and password may "
        "stand); NO_PROXY exempts hosts from it."
    ),
    StoreReason.TLS_FAILED: (
        "Check the endpoint URL and the store's certificate; a private certificate authority is given with "
        "--ca-bundle or AWS_CA_BUNDLE, a single certificate with --fingerprint."
    ),
    StoreReason.NOT_S3: (
        "Something else answers in the store's place: a web console, a portal, a proxy or a load balancer. Check the "
        "endpoint URL and what stands between."
    ),
    StoreReason.REDIRECTED: "mirrorfs follows no redirects: give the address that is meant with --endpoint-url.",
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
    StoreReason.LOCAL_SETTING: (
        "Check the options, the environment (AWS_...) and ~/.aws/config of this machine; the store was not asked."
    ),
    StoreReason.CLOCK_SKEW: "Set this machine's clock right (timedatectl), or the store's.",
    StoreReason.WRONG_REGION: "Give the bucket's region with --region.",
    StoreReason.ADDRESSING: (
        "Give --addressing-style virtual (the bucket's name becomes part of the host's), or path, as the store wants."
    ),
    StoreReason.ACCOUNT_SUSPENDED: "Ask the store's provider why the account is suspended: payment, terms, a limit.",
    StoreReason.ENCRYPTION: (
        "Check the bucket's encryption policy and key: --encryption and --kms-key say what mirrorfs asks for, and the "
        "access key needs kms:GenerateDataKey and kms:Decrypt."
    ),
    StoreReason.FULL: "Free space in the store or raise the quota.",
    StoreReason.REFUSES_WRITES: (
        "It refuses a small object of mirrorfs' own in the same way: look at what its words name, such as a policy, "
        "the storage class or the encryption."
    ),
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

    `retry_after` is how many seconds the store asked to be left alone, None when it did not. `may_be_done` tells that
    the request may have taken effect all the same: its answer was lost, or came from somebody who could not know.
    """

    def __init__(
        self,
        action: str,
        cause: str,
        reason: StoreReason,
        retry_after: float | None = None,
        *,
        may_be_done: bool = False,
    ) -> None:
        super().__init__(action, cause, reason.hint)
        self.reason = reason
        self.retry_after = retry_after
        self.may_be_done = may_be_done


_CODES_ABOUT_SIZE = frozenset({"413", "EntityTooLarge", "RequestEntityTooLarge", "MaxMessageLengthExceeded"})


class StoreRejected(StoreError):
    """The store refused this very request; to repeat it would not help.

    `code` is the store's own word for why (https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html), or the
    HTTP status in digits where it gave none; empty when it is not the store that refused.
    """

    def __init__(self, action: str, cause: str, hint: str = "", code: str = "") -> None:
        super().__init__(action, cause, hint)
        self.code = code
        self.hint = hint

    @property
    def concerns_size(self) -> bool:
        """Whether what is larger would be refused too, and what is smaller may be taken."""
        return self.code in _CODES_ABOUT_SIZE


class ChecksumRefused(StoreRejected):
    """What arrived at the store does not fit the checksum that was sent with it."""


class CopyUnsupported(StoreRejected):
    """The store does not copy objects by itself."""


class ObjectChanged(StoreRejected):
    """What stands there is not what the object was to take the place of: somebody else has put or deleted it."""


class ObjectLocked(StoreRejected):
    """The store keeps this object as it is until its retention is over, whoever asks."""


class ObjectMissing(StoreError):
    """There is no object of this key. `is_certain` tells that the answer bears a mark of S3."""

    def __init__(self, action: str, cause: str, *, is_certain: bool = True) -> None:
        super().__init__(action, cause)
        self.is_certain = is_certain


class ObjectTooLarge(StoreRejected):
    """The object is longer than anything that belongs under its key; it was not read, or not to its end."""


class BodyDamaged(StoreError):
    """The body that arrived does not fit the checksum that the store told with it.

    `is_certain` is false where it is only an ETag that it does not fit, which may be of another kind.
    """

    def __init__(self, action: str, cause: str, body: Content, *, is_certain: bool = True) -> None:
        super().__init__(action, cause)
        self.body = body
        self.is_certain = is_certain


class ConfirmationFailed(StoreError):
    """What the store holds is not what was sent to it, and sending it again did not help."""
