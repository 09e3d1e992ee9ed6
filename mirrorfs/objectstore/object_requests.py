"""Requests for one object each, made without most of boto3, where that costs more than sending them.

Where a bucket is, how it is addressed and who signs remains boto3's to say: the first request goes through it, and the
next ones are made after that. What it signs in another way than with AWS4-HMAC-SHA256 all goes through it.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.utils import percent_encode

from mirrorfs.objectstore.transport import Transport

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
_NOT_HEADERS = {"Bucket", "Key", "Body"}

_Operation = Literal["PutObject", "HeadObject", "GetObject"]
_METHODS = {"PutObject": "PUT", "HeadObject": "HEAD", "GetObject": "GET"}


@dataclass(frozen=True, slots=True)
class _Way:
    """What boto3 has found out: what stands before a key in a URL, and what a signature is for."""

    base: str
    region: str
    service: str
    user_agent: str


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
        if self._way is None or not parameters.keys() <= _HEADERS.keys() | _NOT_HEADERS:
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
        self._way = _Way(base, signed[1], signed[2], headers["User-Agent"])

    def _send(self, way: _Way, operation: _Operation, parameters: Mapping[str, Any]) -> None:
        headers = {_HEADERS[name]: value for name, value in parameters.items() if name in _HEADERS}
        request = AWSRequest(
            method=_METHODS[operation],
            url=way.base + _quoted(parameters["Key"]),
            headers={"User-Agent": way.user_agent, **headers},
            data=parameters.get("Body", b""),
        )
        request.context.update(client_config=self._boto.meta.config, has_streaming_input="Body" in parameters)
        if _CHECKSUM in headers:
            # Over https, as with the checksums that boto3 knows of, the body is not hashed once more for the signature.
            request.context["checksum"] = {"request_algorithm": {"in": "header", "name": _CHECKSUM}}
        S3SigV4Auth(self._credentials.get_frozen_credentials(), way.service, way.region).add_auth(request)
        self._transport.send(request.prepare(), f"before-send.s3.{operation}")


def _quoted(key: str) -> str:
    return str(percent_encode(key, safe=_SAFE_IN_KEYS))


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value
