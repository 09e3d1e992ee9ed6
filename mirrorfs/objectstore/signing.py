"""Signatures of requests for single objects: AWS Signature Version 4, the same that botocore calculates, at less cost.

https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html. botocore derives the key anew for each
request and parses its address several times, which costs as much as sending a small one. A test compares the two.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Mapping
from dataclasses import dataclass

UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"
_ALGORITHM = "AWS4-HMAC-SHA256"
# As in botocore: what proxies change, or somebody else sets.
_NOT_SIGNED = frozenset({"expect", "transfer-encoding", "user-agent", "x-amzn-trace-id"})


@dataclass(frozen=True, slots=True)
class Credentials:
    """What signs; without a token where they do not end."""

    access_key: str
    secret_key: str
    token: str | None = None


class Signer:
    """Signs requests without a query to one host, for one region and service. For several threads at once."""

    def __init__(self, host: str, region: str, service: str) -> None:
        """`host` is the value of the header Host."""
        self._host = host
        self._region = region
        self._service = service
        self._latest: tuple[tuple[str, str], bytes] | None = None

    def signed(
        self, method: str, path: str, headers: Mapping[str, str], payload: str, credentials: Credentials
    ) -> dict[str, str]:
        """The headers with a signature.

        `path` is quoted; `payload` is the SHA-256 of the body in hex, or UNSIGNED_PAYLOAD.
        """
        moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        complete = {**headers, "X-Amz-Date": moment, "X-Amz-Content-SHA256": payload}
        if credentials.token:
            complete["X-Amz-Security-Token"] = credentials.token
        lines = {name.lower(): " ".join(value.split()) for name, value in complete.items()}
        lines["host"] = self._host
        signed = sorted((name, value) for name, value in lines.items() if name not in _NOT_SIGNED)
        names = ";".join(name for name, _ in signed)
        canonical = "\n".join([method, path, "", *(f"{name}:{value}" for name, value in signed), "", names, payload])
        scope = f"{moment[:8]}/{self._region}/{self._service}/aws4_request"
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        key = self._key(credentials.secret_key, moment[:8])
        signature = hmac.digest(key, f"{_ALGORITHM}\n{moment}\n{scope}\n{digest}".encode(), "sha256").hex()
        complete["Authorization"] = (
            f"{_ALGORITHM} Credential={credentials.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
        )
        return complete

    def _key(self, secret: str, date: str) -> bytes:
        latest = self._latest
        if latest is not None and latest[0] == (secret, date):
            return latest[1]
        key = f"AWS4{secret}".encode()
        for part in (date, self._region, self._service, "aws4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        self._latest = (secret, date), key
        return key
