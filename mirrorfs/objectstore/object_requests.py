"""Requests for one object each, made without most of boto3, where that costs more than sending them.

Where a bucket is, how it is addressed and who signs remains boto3's to say: the first request goes through it, and the
next ones are made after that. What it signs in another way than with AWS4-HMAC-SHA256 all goes through it.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.utils import percent_encode

from mirrorfs.datastore.content import Content, pieces_of
from mirrorfs.objectstore.bodies import content_of
from mirrorfs.objectstore.signing import UNSIGNED_PAYLOAD, Credentials, Signer
from mirrorfs.objectstore.transport import PlainRequest, Transport

if TYPE_CHECKING:
    from botocore.awsrequest import AWSPreparedRequest
    from mypy_boto3_s3 import S3Client as BotoClient

_SIGNED = re.compile(r"AWS4-HMAC-SHA256 Credential=[^,]*/\d{8}/([^/,]+)/([^/,]+)/aws4_request,")
_SAFE_IN_KEYS = "-._~/"
_CHECKSUM = "x-amz-checksum-crc32c"
_HEADERS = {
    "ChecksumCRC32C": _CHECKSUM,
    "ChecksumMode": "x-amz-checksum-mode",
    "ContentMD5": "Content-MD5",
    "IfMatch": "If-Match",
    "IfNoneMatch": "If-None-Match",
    "SSEKMSKeyId": "x-amz-server-side-encryption-aws-kms-key-id",
    "ServerSideEncryption": "x-amz-server-side-encryption",
    "StorageClass": "x-amz-storage-class",
}
_KNOWN = {"Bucket", "Key", "Body", *_HEADERS}

_Operation = Literal["PutObject", "HeadObject", "GetObject"]
_METHODS = {"PutObject": "PUT", "HeadObject": "HEAD", "GetObject": "GET"}


@dataclass(frozen=True, slots=True)
class _Way:
    """What boto3 has found out: what stands before a key in a URL and in its path, and what a signature is for."""

    base: str
    path: str
    host: str
    user_agent: str
    signer: Signer


class ObjectRequests:
    """The calls of a boto3 client of these names, with its parameters. For several threads at once.

    As there, the answer is the transport's to give.
    """

    def __init__(self, boto: BotoClient, transport: Transport, credentials: Any) -> None:  # noqa: ANN401
        self._boto = boto
        self._transport = transport
        self._credentials = credentials
        self._seen = threading.local()
        self._way: _Way | None = None
        self._is_usual = True
        boto.meta.events.register_first("before-send.s3", self._see)

    def put_object(self, **parameters: Any) -> None:  # noqa: ANN401
        """Puts `Body`."""
        self._call("PutObject", self._boto.put_object, parameters)

    def head_object(self, **parameters: Any) -> None:  # noqa: ANN401
        """Asks for the headers."""
        self._call("HeadObject", self._boto.head_object, parameters)

    def get_object(self, **parameters: Any) -> None:  # noqa: ANN401
        """Asks for the content."""
        self._call("GetObject", self._boto.get_object, parameters)

    def _call(self, operation: _Operation, by_boto: Any, parameters: Mapping[str, Any]) -> None:  # noqa: ANN401
        if self._way is None or not parameters.keys() <= _KNOWN:
            by_boto(**parameters)
            if self._way is None and self._is_usual:
                self._learn(parameters["Key"])
            return
        self._send(self._way, operation, parameters)

    def _see(self, request: AWSPreparedRequest, **_: object) -> None:
        self._seen.request = request

    def _learn(self, key: str) -> None:
        request: AWSPreparedRequest = self._seen.request
        headers = {name: _text(value) for name, value in request.headers.items()}
        signed = _SIGNED.match(headers.get("Authorization", ""))
        quoted = _quoted(key)
        if signed is None or not request.url.endswith(f"/{quoted}"):
            self._is_usual = False
            return
        base = request.url.removesuffix(quoted)
        frozen = self._credentials.get_frozen_credentials()
        by_botocore = S3SigV4Auth(frozen, signed[2], signed[1]).headers_to_sign(AWSRequest("GET", base))
        signer = Signer(by_botocore["host"], signed[1], signed[2])
        self._way = _Way(base, urlsplit(base).path, by_botocore["host"], headers["User-Agent"], signer)

    def _send(self, way: _Way, operation: _Operation, parameters: Mapping[str, Any]) -> None:
        headers = {_HEADERS[name]: value for name, value in parameters.items() if name in _HEADERS}
        headers["User-Agent"] = way.user_agent
        method, quoted, body = _METHODS[operation], _quoted(parameters["Key"]), content_of(parameters.get("Body"))
        has_body = "Body" in parameters
        payload = _sha256(body) if self._signs_payload(way, headers, has_body=has_body) else UNSIGNED_PAYLOAD
        signed = way.signer.signed(method, way.path + quoted, headers, payload, self._frozen_credentials())
        if has_body:
            # Botocore does not sign it either.
            signed["Content-Length"] = str(len(body))
        self._transport.exchange(PlainRequest(method, way.base + quoted, way.host, signed, body), operation)

    def _signs_payload(self, way: _Way, headers: Mapping[str, str], *, has_body: bool) -> bool:
        """As botocore does, for which a checksum in its header is as good over https."""
        configured: bool | None = (getattr(self._boto.meta.config, "s3", None) or {}).get("payload_signing_enabled")
        if configured is not None:
            return configured
        is_protected = _CHECKSUM in headers or _HEADERS["ContentMD5"] in headers
        return not (has_body and is_protected and way.base.startswith("https"))

    def _frozen_credentials(self) -> Credentials:
        frozen = self._credentials.get_frozen_credentials()
        return Credentials(frozen.access_key, frozen.secret_key, frozen.token)


def _sha256(body: Content) -> str:
    if isinstance(body, bytes):
        return hashlib.sha256(body).hexdigest()
    # What is in a file is not to be in memory as a whole.
    found = hashlib.sha256()
    for piece in pieces_of(body):
        found.update(piece)
    return found.hexdigest()


def _quoted(key: str) -> str:
    return str(percent_encode(key, safe=_SAFE_IN_KEYS))


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value
