"""Signatures are those that botocore calculates."""

from __future__ import annotations

import datetime
from unittest import mock
from urllib.parse import quote

import botocore.auth
import botocore.credentials
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from hypothesis import given
from hypothesis import strategies as st

from mirrorfs.objectstore.signing import UNSIGNED_PAYLOAD, Credentials, Signer

WORDS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20)
VALUES = st.lists(WORDS, min_size=1, max_size=3).map("  ".join)
NAMES = ["Content-MD5", "If-None-Match", "User-Agent", "x-amz-checksum-crc32c", "x-amz-storage-class", "Expect"]


@given(
    method=st.sampled_from(["GET", "PUT", "HEAD"]),
    key=st.text(min_size=1, max_size=30).map(lambda text: quote(text.encode("utf-8", "replace"), safe="-._~/")),
    headers=st.dictionaries(st.sampled_from(NAMES), VALUES),
    secret=WORDS,
    token=st.none() | WORDS,
    host=st.sampled_from(["s3.example.org", "s3.example.org:8333", "127.0.0.1:9000", "[::1]:9000"]),
)
def test_a_signature_is_the_one_of_botocore(
    method: str, key: str, headers: dict[str, str], secret: str, token: str | None, host: str
) -> None:
    path = f"/bucket/{key}"
    signer = Signer(host, "eu-central-1", "s3")
    # The second is made with a key that is kept.
    for _ in range(2):
        found = signer.signed(method, path, headers, UNSIGNED_PAYLOAD, Credentials("AK", secret, token))
    # Over https and with a checksum in a header, it does not sign the body either.
    request = AWSRequest(method, f"https://{host}{path}", headers=headers, data=b"body")
    request.context.update(has_streaming_input=True, payload_signing_enabled=False)
    moment = datetime.datetime.strptime(found["X-Amz-Date"], "%Y%m%dT%H%M%SZ")
    credentials = botocore.credentials.Credentials("AK", secret, token)
    with (
        mock.patch.object(botocore.auth, "get_current_datetime", return_value=moment),
        mock.patch.object(S3SigV4Auth, "payload", return_value=UNSIGNED_PAYLOAD),
    ):
        S3SigV4Auth(credentials, "s3", "eu-central-1").add_auth(request)
    assert found["Authorization"] == request.headers["Authorization"]
    assert {name.lower(): value for name, value in found.items()} == {
        name.lower(): value for name, value in request.headers.items()
    }
