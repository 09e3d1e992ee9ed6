"""A catalogue of answers that stores, gateways, portals and load balancers give, and S3 does not.

Each changes, or takes the place of, an answer of a store that is well. It may cost time; nothing may be lost by it, and
nothing may end. From public reports; docs/troubleshooting.md says what an administrator is told of each.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Headers = dict[str, str]
"""Names in lower case."""
Change = Callable[[int, Headers, bytes], tuple[int, Headers, bytes]]

PAGE = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>Welcome to the hotel</body></html>"
XHTML = b'<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><body><p>Console</p></body></html>'


@dataclass(frozen=True, slots=True)
class OddAnswer:
    """One kind. `requests` are those that it is given to: methods on keys, "listing", "delete", and "question".

    A question is one about versions, locks and retentions. `instead` says that the store is not to see the request:
    what answers so has not passed it on. `keys` is a pattern (fnmatch) of those that it is given to, when drawn.
    `refuses_object`: it is a refusal of this object for good, which whoever asked has to try again.
    """

    name: str
    requests: frozenset[str]
    change: Change
    instead: bool = False
    keys: str = "*"
    refuses_object: bool = False


def _page(status: int, body: bytes, content_type: str, **headers: str) -> Change:
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    def change(_: int, __: Headers, ___: bytes) -> tuple[int, Headers, bytes]:
        return status, {"content-type": content_type, **named}, body

    return change


def _error(status: int, code: str, message: str | None) -> Change:
    words = "" if message is None else f"<Message>{message}</Message>"
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code>{words}</Error>'.encode()
    return _page(status, body, "application/xml")


def _without(*names: str) -> Change:
    def change(status: int, headers: Headers, body: bytes) -> tuple[int, Headers, bytes]:
        return status, {name: value for name, value in headers.items() if name not in names}, body

    return change


def _etag(write: Callable[[str], str]) -> Change:
    def change(status: int, headers: Headers, body: bytes) -> tuple[int, Headers, bytes]:
        if "etag" in headers:
            headers = {**headers, "etag": write(headers["etag"].strip('"'))}
        return status, headers, body

    return change


def _body(pattern: bytes, replacement: bytes) -> Change:
    def change(status: int, headers: Headers, body: bytes) -> tuple[int, Headers, bytes]:
        return status, headers, re.sub(pattern, replacement, body)

    return change


def _with_an_odd_date(status: int, headers: Headers, body: bytes) -> tuple[int, Headers, bytes]:
    return status, {**headers, "last-modified": "?"}, body


def _under_kms(status: int, headers: Headers, body: bytes) -> tuple[int, Headers, bytes]:
    status, headers, body = _etag(lambda etag: f'"{etag[::-1]}"')(status, headers, body)
    return status, {**headers, "x-amz-server-side-encryption": "aws:kms"}, body


def _half(_: int, headers: Headers, body: bytes) -> tuple[int, Headers, bytes]:
    return 206, headers, body[: len(body) // 2]


_READS = frozenset({"GET", "HEAD"})
_LISTING = frozenset({"listing"})
_DELETE = frozenset({"delete"})
_PUT = frozenset({"PUT"})
_ALL = _READS | _LISTING | _DELETE | _PUT
_QUESTION = frozenset({"question"})
_EVERY = _ALL | _QUESTION
_CHUNKS = "*/.chunks/*"

ODD_ANSWERS: Mapping[str, OddAnswer] = {
    odd.name: odd
    for odd in (
        # -- not S3 at all
        OddAnswer("a page with 200", _EVERY, _page(200, PAGE, "text/html; charset=utf-8"), instead=True),
        OddAnswer(
            "an XHTML page with 200", _LISTING | _DELETE | _QUESTION, _page(200, XHTML, "application/xml"), instead=True
        ),
        OddAnswer(
            "JSON with 200",
            _LISTING | _DELETE | _QUESTION,
            _page(200, b'{"ok": true}', "application/json"),
            instead=True,
        ),
        OddAnswer("nothing with 200", _LISTING | _DELETE, _page(200, b"", "application/xml"), instead=True),
        OddAnswer("an empty document", _LISTING, _page(200, b"<ListBucketResult/>", "application/xml"), instead=True),
        OddAnswer(
            "a redirect",
            _EVERY,
            _page(302, PAGE, "text/html", location="https://u:p@elsewhere.example/x"),
            instead=True,
        ),
        OddAnswer("404 and a page", _EVERY, _page(404, PAGE, "text/html"), instead=True),
        OddAnswer("404 and nothing", _ALL - {"HEAD"}, _page(404, b"", "text/plain"), instead=True),
        OddAnswer("404 and text", _ALL, _page(404, b"default backend - 404", "text/plain"), instead=True),
        OddAnswer("403 and a page", _EVERY, _page(403, PAGE, "text/html"), instead=True),
        OddAnswer("401 and a page", _ALL, _page(401, PAGE, "text/html", www_authenticate="Basic"), instead=True),
        OddAnswer("502 and a page", _EVERY, _page(502, PAGE, "text/html"), instead=True),
        OddAnswer("504 and a page, though done", _PUT | _DELETE, _page(504, PAGE, "text/html")),
        OddAnswer("429 and text", _EVERY, _page(429, b"slow", "text/plain", retry_after="1"), instead=True),
        OddAnswer("418", _ALL, _page(418, b"", "text/plain"), instead=True),
        # -- says 403, 404 or 400 for other reasons
        OddAnswer("404 to a write", _PUT | _DELETE, _error(404, "NoSuchKey", "no such key"), instead=True),
        OddAnswer("storage cap", _PUT, _error(403, "AccessDenied", "storage cap exceeded"), instead=True),
        OddAnswer("KMS", _PUT, _error(403, "AccessDenied", "not authorized: kms:GenerateDataKey"), instead=True),
        OddAnswer("quota", _PUT, _error(400, "XMinioAdminBucketQuotaExceeded", "quota exceeded"), instead=True),
        OddAnswer("full", _PUT, _error(507, "InsufficientStorage", None), instead=True),
        OddAnswer("suspended", _EVERY, _error(403, "AccountProblem", "The account is suspended"), instead=True),
        OddAnswer("virtual host", _PUT, _error(403, "SecondLevelDomainForbidden", "use virtual host"), instead=True),
        OddAnswer(
            "encryption policy", _PUT, _error(403, "AccessDenied", "an encryption header is required"), instead=True
        ),
        # -- refuses an object for good, or something optional
        OddAnswer(
            "413 and a page", _PUT, _page(413, PAGE, "text/html"), instead=True, keys=_CHUNKS, refuses_object=True
        ),
        OddAnswer(
            "too large",
            _PUT,
            _error(400, "EntityTooLarge", "your proposed upload exceeds"),
            instead=True,
            keys=_CHUNKS,
            refuses_object=True,
        ),
        OddAnswer(
            "no checksum headers",
            _PUT,
            _error(400, "InvalidArgument", "x-amz-checksum-crc32c"),
            instead=True,
            keys=_CHUNKS,
            refuses_object=True,
        ),
        OddAnswer("no deletions of many", _DELETE, _error(501, "NotImplemented", None), instead=True),
        OddAnswer("an error without a code", _ALL, _error(500, "", None), instead=True),
        # -- leaves fields out
        OddAnswer("no ETag", _READS | _PUT, _without("etag")),
        OddAnswer("no dates", _READS | _PUT, _without("last-modified", "date")),
        OddAnswer("no checksum", _READS | _PUT, _without("x-amz-checksum-crc32c", "x-amz-checksum-type")),
        OddAnswer("an odd date", _READS, _with_an_odd_date),
        OddAnswer("no length of a HEAD", frozenset({"HEAD"}), _without("content-length")),
        OddAnswer("no sizes in a listing", _LISTING, _body(rb"<Size>\d*</Size>", b"")),
        OddAnswer("odd dates in a listing", _LISTING, _body(rb"<LastModified>[^<]*<", b"<LastModified><")),
        OddAnswer("IsTruncated with a blank", _LISTING, _body(rb"(<IsTruncated>)(\w)", rb"\1 \2")),
        OddAnswer("no keys in a result", _DELETE, _body(rb"<Deleted>.*</Deleted>", b"")),
        # -- writes them otherwise
        OddAnswer("an ETag in capitals", _READS | _PUT, _etag(lambda etag: f'"{etag.upper()}"')),
        OddAnswer("a weak ETag", _READS | _PUT, _etag(lambda etag: f'W/"{etag}"')),
        OddAnswer("an ETag without quotes", _READS | _PUT, _etag(str)),
        OddAnswer("an ETag that is no MD5", _READS | _PUT, _etag(lambda etag: f'"{etag[::-1]}"')),
        OddAnswer("an object under SSE-KMS", _READS | _PUT, _under_kms),
        OddAnswer("keys that are encoded", _LISTING, _body(rb":", b"%3A")),
        # -- says 200 and means no
        OddAnswer("200 and an error", _LISTING | _DELETE, _error(200, "InternalError", "sorry"), instead=True),
        OddAnswer("a part with 206", frozenset({"GET"}), _half),
    )
}
"""All kinds, by name."""
