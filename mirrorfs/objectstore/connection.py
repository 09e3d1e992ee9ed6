"""boto3 behind one door: made from options, environment and profile, made anew when those may have changed.

Whatever goes wrong on this machine before anything is sent is told here: settings that boto3 cannot use, keys that
cannot be keys, a helper for credentials that fails or hangs.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import boto3.session
import botocore.config
import botocore.exceptions
from botocore.credentials import RefreshableCredentials

import mirrorfs
from mirrorfs.objectstore.errors import ObjectTooLarge, StoreError, StoreReason, StoreUnavailable
from mirrorfs.objectstore.examination import examined
from mirrorfs.objectstore.masking import quoted, shown_url
from mirrorfs.objectstore.object_requests import ObjectRequests
from mirrorfs.objectstore.refusals import Asked
from mirrorfs.objectstore.throttle import Throttle
from mirrorfs.objectstore.transport import Answer, BodyLimit, BodyRefused, BodyTooLong, Transport, TransportFailed
from mirrorfs.objectstore.url import MalformedURL, StoreOptions, check_endpoint, is_modern_bucket

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client as BotoClient

_HELPER_SECONDS = 60.0


@dataclass(slots=True, eq=False)
class _Made:
    """One boto3 client and what belongs to it. `secrets` are what must never be shown, `endpoint` is fit to be."""

    boto: BotoClient
    endpoint: str
    transport: Transport
    objects: ObjectRequests
    credentials: Any
    secrets: tuple[str, ...] = ()

    def refresh(self) -> None:
        """Has credentials that end renewed, which may take long or fail."""
        frozen = self.credentials.get_frozen_credentials()
        self.secrets = tuple(value for value in (frozen.access_key, frozen.secret_key, frozen.token) if value)


class Request:
    """One request: call one method of `boto`, or of `objects` where that has it, then take its answer, examined."""

    def __init__(self, made: _Made, asked: Asked) -> None:
        self.boto = made.boto
        self.objects = made.objects
        self._made = made
        self._asked = asked

    def answer(self) -> Answer:
        """The answer to what was asked, if it is a success without a document of its own. Raises StoreError."""
        answer = self._made.transport.take()
        examined(self._asked, answer, self._made.secrets)
        return answer

    def document(self) -> tuple[ElementTree.Element, Answer]:
        """The document of a success. Raises StoreError."""
        answer = self._made.transport.take()
        root = examined(self._asked, answer, self._made.secrets)
        assert root is not None, f"{answer.operation} has no document"
        return root, answer

    def quoted(self, text: str) -> str:
        """Words of the store as they may be shown."""
        return quoted(text, self._made.secrets)


class Connection:
    """The way to one bucket. For several threads at once."""

    def __init__(
        self, bucket: str, options: StoreOptions, *, parallelism: int, throttle: Throttle | None = None
    ) -> None:
        """`parallelism` is the number of threads that each get a connection of their own."""
        self._throttle = throttle
        self.bucket = bucket
        self.options = options
        self._parallelism = parallelism
        self._lock = threading.Lock()
        self._made: _Made | None = None
        self._helper: threading.Thread | None = None
        # botocore writes signed headers and session tokens into its debug log, and small talk into the other.
        for name in ("boto3", "botocore", "urllib3", "s3transfer"):
            logging.getLogger(name).setLevel(logging.WARNING)

    @property
    def endpoint(self) -> str:
        """The endpoint as far as it is known, for messages."""
        made = self._made
        if made is not None:
            return made.endpoint
        return self.options.endpoint_url or "the default endpoint"

    @property
    def region(self) -> str | None:
        """The region that requests are signed for, as far as it is known."""
        made = self._made
        return self.options.region if made is None else made.boto.meta.region_name

    @property
    def place(self) -> str:
        """Bucket and endpoint, for messages."""
        return f"bucket {self.bucket} at {self.endpoint}"

    def requests_without_progress(self, seconds: float) -> list[tuple[str, float]]:
        """Requests for which nothing has come or gone for so long: which, and for how many seconds."""
        made = self._made
        return [] if made is None else made.transport.deadlines.without_progress(seconds)

    @contextmanager
    def requesting(
        self, action: str, key: str | None = None, *, writes: bool = False, limit: BodyLimit | None = None
    ) -> Iterator[Request]:
        """Lends what makes one request; `action` ends with a preposition that the bucket follows.

        Raises StoreError for all that boto3, the network or the answer does not have as it should be; ObjectTooLarge,
        and what the limit's own check raises, for a body that is not to be read.
        """
        made: _Made | None = None
        try:
            made = self._client(action)
            made.transport.limit_next_body(limit)
            yield Request(made, Asked(f"{action} {self.place}", key, writes))
        except BodyRefused as refused:
            raise refused.error from None
        except BodyTooLong as too_long:
            raise self._too_long(f"{action} {self.place}", too_long.announced, limit) from None
        except TransportFailed as error:
            raise StoreUnavailable(
                f"{action} {self.place}", error.cause, error.reason, may_be_done=error.may_be_done
            ) from None
        except StoreUnavailable as error:
            if error.reason.concerns_local_settings:
                self._forget(made)
            raise
        except _CREDENTIAL_ERRORS as error:
            self._forget(made)
            raise StoreUnavailable(f"{action} {self.place}", quoted(str(error)), StoreReason.NO_CREDENTIALS) from None
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
            # Nothing was sent, or not by us: a setting, a parameter, or what boto3 asks others for.
            self._forget(made)
            raise StoreUnavailable(f"{action} {self.place}", quoted(str(error)), StoreReason.LOCAL_SETTING) from None

    @staticmethod
    def _too_long(action: str, announced: int | None, limit: BodyLimit | None) -> StoreError:
        found = "more" if announced is None else f"{announced} bytes"
        if limit is None:
            return StoreUnavailable(action, f"{found} came as the answer, which S3 does not send", StoreReason.NOT_S3)
        return ObjectTooLarge(
            action,
            f"at most {limit.maximum} bytes belong there, and it has {found}",
            "mirrorfs puts no such object there: find out who did.",
        )

    def forget_credentials(self) -> None:
        """Has them read again, since they were not accepted in an answer that was a success as such."""
        self._forget(self._made)

    def _client(self, action: str) -> _Made:
        with self._lock:
            if self._made is None:
                self._made = self._make(f"{action} {self.place}")
            made = self._made
        if isinstance(made.credentials, RefreshableCredentials):
            self._within_time(f"{action} {self.place}", made.refresh)
        return made

    def _forget(self, made: _Made | None) -> None:
        with self._lock:
            if made is not None and self._made is made:
                self._made = None
                made.transport.close()

    def _make(self, action: str) -> _Made:
        made: list[_Made] = []
        try:
            self._within_time(action, lambda: made.append(self._make_anew()))
        except (StoreUnavailable, *_CREDENTIAL_ERRORS):
            raise
        except MalformedURL as error:
            raise StoreUnavailable(action, str(error), StoreReason.LOCAL_SETTING) from None
        except OSError as error:
            cause = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            raise StoreUnavailable(action, quoted(cause), StoreReason.LOCAL_SETTING) from None
        except Exception as error:  # noqa: BLE001
            # boto3 reads what an administrator wrote, and says in any kind of exception that it cannot use it.
            raise StoreUnavailable(
                action, f"boto3 cannot use a setting: {quoted(str(error))}", StoreReason.LOCAL_SETTING
            ) from None
        (found,) = made
        problem = _problem_of_keys(found.secrets)
        if problem is not None:
            raise StoreUnavailable(action, problem, StoreReason.NO_CREDENTIALS)
        return found

    def _make_anew(self) -> _Made:
        return _make(self.bucket, self.options, self._parallelism, self._throttle)

    def _within_time(self, action: str, work: Callable[[], object]) -> None:
        """Does what may call a program of the administrator's (credential_process), which may hang."""
        if self._helper is not None and self._helper.is_alive():
            raise self._hangs(action)
        failures: list[BaseException] = []

        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001
                failures.append(error)

        helper = threading.Thread(target=run, name="store-credentials", daemon=True)
        helper.start()
        helper.join(_HELPER_SECONDS)
        if helper.is_alive():
            self._helper = helper
            raise self._hangs(action)
        for failure in failures:
            raise failure

    def _hangs(self, action: str) -> StoreUnavailable:
        return StoreUnavailable(
            action,
            f"whatever gives the credentials (credential_process, or a metadata service) has not ended within "
            f"{_HELPER_SECONDS:.0f} s",
            StoreReason.NO_CREDENTIALS,
        )


def _make(bucket: str, options: StoreOptions, parallelism: int, throttle: Throttle | None) -> _Made:
    session = boto3.session.Session(profile_name=options.profile, region_name=options.region)
    style = options.addressing_style or ("path" if not is_modern_bucket(bucket) else None)
    config = botocore.config.Config(
        # boto3's own default, a checksum in a trailer of an aws-chunked body, is refused by older stores.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        # All repeating is done in one place, retry.py.
        retries={"mode": "standard", "total_max_attempts": 1},
        max_pool_connections=parallelism,
        user_agent_extra=f"mirrorfs/{mirrorfs.__version__}",
        s3=None if style is None else {"addressing_style": style},
    )
    boto = session.client("s3", endpoint_url=options.endpoint_url, config=config)
    # From the environment or the profile; one of our own options was checked before.
    check_endpoint(boto.meta.endpoint_url)
    ca_bundle = options.ca_bundle or session._session.get_config_variable("ca_bundle")
    ca_bundle = ca_bundle or os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
    transport = Transport(options, ca_bundle, parallelism=parallelism, throttle=throttle)
    credentials = session.get_credentials()
    if credentials is None:
        raise botocore.exceptions.NoCredentialsError
    events = boto.meta.events
    events.register("before-call.s3.DeleteObjects", _add_content_md5)
    events.register("before-call.s3.PutObjectRetention", _add_content_md5)
    events.register("before-send.s3", cast(Any, transport.send))
    endpoint = shown_url(boto.meta.endpoint_url)
    made = _Made(boto, endpoint, transport, ObjectRequests(boto, transport, credentials), credentials)
    made.refresh()
    return made


def _problem_of_keys(keys: tuple[str, ...]) -> str | None:
    """What is wrong with keys that no header can carry; a line break at the end of a file is the usual one."""
    for key in keys:
        if not key.isascii() or not key.isprintable() or " " in key:
            return "an access key, secret or token has a line break, blank or other character in it that none can have"
    return None


def _add_content_md5(params: dict[str, Any], **_: object) -> None:
    # boto3 sends a CRC32 instead since 1.36, and has no argument for the MD5 that many stores insist on.
    digest = hashlib.md5(params["body"], usedforsecurity=False).digest()
    params["headers"]["Content-MD5"] = base64.b64encode(digest).decode("ascii")


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
